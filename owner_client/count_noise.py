"""Noise for counts: the discrete Laplace distribution, by integers alone (Canonne, Kamath and Steinke, arXiv
2004.00010, algorithm 2), from the system's randomness.

Adding or leaving out one document changes a count by one, so a count with this noise is epsilon-differentially private
towards a document. That says nothing of a figure that is not a count, such as bits per byte.
"""

import secrets
from fractions import Fraction


def noisy_count(count: int, *, epsilon: float, least: int) -> int:
    """A count with noise, and `least` at least: what a rule asks for of every figure."""
    return max(least, count + discrete_laplace(Fraction(1) / Fraction(epsilon).limit_denominator(10**6)))


def discrete_laplace(scale: Fraction) -> int:
    """An integer x with probability proportional to exp(-|x| / scale)."""
    if scale <= 0:
        raise ValueError(f"a scale of {scale}")
    top, bottom = scale.numerator, scale.denominator
    while True:
        step = secrets.randbelow(top)
        if not _with_probability_exp(Fraction(step, top)):
            continue
        whole = 0
        while _with_probability_exp(Fraction(1)):
            whole += 1
        size = (step + top * whole) // bottom
        if secrets.randbelow(2):
            return size
        if size:  # else zero would come twice as often
            return -size


def _with_probability_exp(gamma: Fraction) -> bool:
    """True with probability exp(-gamma), for gamma from 0 to 1."""
    tries = 1
    while secrets.randbelow(gamma.denominator * tries) < gamma.numerator:
        tries += 1
    return tries % 2 == 1
