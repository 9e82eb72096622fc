# ruff: noqa: E501 - templates are data; wrapping them by a column helps nobody
"""Text the demo writes itself: arithmetic word problems with worked answers, and agreements between made-up parties.

Both are grammars: a template with `[one|other]` choices and `{slots}`, filled from a seeded random source. They
stand in for text that a Python installation holds too little of; nothing here is quoted from anywhere.
"""

import re
from collections.abc import Callable, Mapping
from random import Random
from typing import Final

_CHOICE = re.compile(r"\[([^\[\]]*)\]")


def fill(template: str, random: Random, slots: Mapping[str, str | int]) -> str:
    """Resolve every innermost `[a|b]` to one of its alternatives, then fill the `{slots}`."""
    while _CHOICE.search(template):
        template = _CHOICE.sub(lambda match: random.choice(match[1].split("|")), template)
    return template.format(**slots)


def _words(text: str) -> list[str]:
    return text.split()


# ---- Word problems ---------------------------------------------------------------------------------------------------

_NAMES: Final = _words(
    "Amara Ben Chiara Daniel Elif Farid Greta Hana Ivan Jonas Kofi Lena Mateo Nadia Omar Priya Quinn Rosa Samir Tessa "
    "Umar Vera Wanda Xavier Yusuf Zoe Aiko Bruno Celia Dmitri Esther Felix Gita Henrik Ines Jamal Katja Luca Mina Noor"
)
_THINGS: Final = _words(
    "marbles apples stickers pencils books stamps shells coins cards oranges beads cookies buttons ribbons seeds postcards "
    "balloons candles tiles bricks peaches badges ropes lamps"
)
_PLACES: Final = _words("school library market garden bakery museum workshop farm harbour studio office station")
_WORKERS: Final = _words("baker painter gardener potter tailor printer carpenter weaver")

_STARTS: Final = (
    "{name} has {a} {things}.",
    "[At the {place}|In the {place}], {name} [counts|finds|collects] {a} {things}.",
    "{name} [starts the week|begins the day] with {a} {things} [in a box|on a shelf|in a basket].",
)
_GAINS: Final = (
    "{other} gives {name} {b} more.",
    "Then {name} [buys|finds|receives] {b} [more|further ones].",
    "On [Monday|Tuesday|Friday], {b} new {things} arrive.",
)
_LOSSES: Final = (
    "{name} gives {b} of them to {other}.",
    "[Later|After lunch|In the evening], {b} {things} [are lost|are sold|break].",
    "{name} [uses up|gives away] {b} of the {things}.",
)
_GROWTHS: Final = (
    "By the end of the [month|week], {name} has {b} times as many.",
    "A [friend|neighbour] makes the number {b} times as large.",
)
_SHARINGS: Final = (
    "They are then shared equally among {b} [friends|boxes|tables|classes], and {name} looks at one share.",
    "{name} [divides|splits] them evenly into {b} [groups|bags] and keeps one.",
)
_QUESTIONS: Final = (
    "How many {things} [does {name} have|are there] [now|in the end]?",
    "What is the number of {things} [at the end|that {name} has then]?",
)


def _story(random: Random) -> tuple[str, list[str], int]:
    """A chain of two to four changes to one quantity."""
    total = random.randint(5, 99)
    slots: dict[str, str | int] = dict(zip(("name", "other"), random.sample(_NAMES, 2), strict=True))
    slots |= {"things": random.choice(_THINGS), "place": random.choice(_PLACES), "a": total}
    sentences, steps = [fill(random.choice(_STARTS), random, slots)], list[str]()
    for _ in range(random.randint(2, 4)):
        sentence, step, total = _change(random, total, slots)
        sentences.append(sentence)
        steps.append(step)
    sentences.append(fill(random.choice(_QUESTIONS), random, slots))
    return " ".join(sentences), steps, total


def _change(random: Random, total: int, slots: Mapping[str, str | int]) -> tuple[str, str, int]:
    divisors = [b for b in range(2, 10) if total % b == 0]
    kinds = ["gain", "loss"] + ["growth"] * (total < 100) + ["sharing"] * bool(divisors and total > 20)
    kind = random.choice(kinds)
    if kind == "gain":
        b = random.randint(2, 60)
        return fill(random.choice(_GAINS), random, {**slots, "b": b}), f"{total} + {b} = {total + b}", total + b
    if kind == "loss":
        b = random.randint(1, max(1, total - 1))
        return fill(random.choice(_LOSSES), random, {**slots, "b": b}), f"{total} - {b} = {total - b}", total - b
    if kind == "growth":
        b = random.randint(2, 5)
        return fill(random.choice(_GROWTHS), random, {**slots, "b": b}), f"{total} * {b} = {total * b}", total * b
    b = random.choice(divisors)
    return fill(random.choice(_SHARINGS), random, {**slots, "b": b}), f"{total} / {b} = {total // b}", total // b


def _shopping(random: Random) -> tuple[str, list[str], int]:
    first, second = random.sample(_THINGS, 2)
    a, p, b, q = (random.randint(2, 12) for _ in range(4))
    spent = a * p + b * q
    paid = spent + random.randint(1, 40)
    text = fill(
        "{name} [buys|orders] {a} {first} at {p} [coins|dollars|euros] each and {b} {second} at {q} each. "
        "[{name} pays with {paid}.|The purse holds {paid}.] How much [is left|change is there]?",
        random,
        {"name": random.choice(_NAMES), "a": a, "p": p, "b": b, "q": q, "first": first, "second": second, "paid": paid},
    )
    sums = [f"{a} * {p} = {a * p}", f"{b} * {q} = {b * q}", f"{a * p} + {b * q} = {spent}"]
    return text, [*sums, f"{paid} - {spent} = {paid - spent}"], paid - spent


def _work(random: Random) -> tuple[str, list[str], int]:
    rate, hours, days = random.randint(3, 15), random.randint(2, 9), random.randint(2, 14)
    made = rate * hours * days
    sold = random.randint(1, made)
    text = fill(
        "A {worker} makes {rate} {things} [an hour|every hour] and works {hours} hours a day. After {days} days, "
        "{sold} {things} [have been sold|are sent to the {place}]. How many [remain|are still there]?",
        random,
        {"worker": random.choice(_WORKERS), "things": random.choice(_THINGS), "place": random.choice(_PLACES),
         "rate": rate, "hours": hours, "days": days, "sold": sold},
    )  # fmt: skip
    daily = rate * hours
    steps = [f"{rate} * {hours} = {daily}", f"{daily} * {days} = {made}", f"{made} - {sold} = {made - sold}"]
    return text, steps, made - sold


def _journey(random: Random) -> tuple[str, list[str], int]:
    speed, hours, more, later = (random.randint(low, high) for low, high in ((20, 90), (2, 6), (20, 90), (1, 5)))
    total = speed * hours + more * later
    text = fill(
        "{name} [drives|travels|rides] for {hours} hours at {speed} kilometres an hour and then for {later} hours at "
        "{more} kilometres an hour. [How far is that in all?|What is the whole distance?]",
        random,
        {"name": random.choice(_NAMES), "hours": hours, "speed": speed, "later": later, "more": more},
    )
    first, second = speed * hours, more * later
    return (
        text,
        [f"{speed} * {hours} = {first}", f"{more} * {later} = {second}", f"{first} + {second} = {total}"],
        total,
    )


def _percentage(random: Random) -> tuple[str, list[str], int]:
    whole, percent, extra = (
        random.randint(2, 30) * 20,
        random.choice((5, 10, 15, 20, 25, 30, 40, 60)),
        random.randint(1, 30),
    )
    part = whole * percent // 100
    text = fill(
        "[The {place} holds|A {place} has] {whole} {things}. {percent} percent of them are [red|new|wooden|broken], and "
        "{name} [adds|brings] {extra} [more of that kind|further such ones]. How many [of that kind|such {things}] are there?",
        random,
        {"place": random.choice(_PLACES), "whole": whole, "things": random.choice(_THINGS), "percent": percent,
         "name": random.choice(_NAMES), "extra": extra},
    )  # fmt: skip
    share = [f"{whole} * {percent} = {whole * percent}", f"{whole * percent} / 100 = {part}"]
    return text, [*share, f"{part} + {extra} = {part + extra}"], part + extra


def _equation(random: Random) -> tuple[str, list[str], int]:
    x, a, b = random.randint(2, 30), random.randint(2, 12), random.randint(1, 60)
    text = fill(
        "{name} thinks of a number, multiplies it by {a} and [adds|then adds] {b}. The result is {c}. "
        "[What was the number?|Which number was it?]",
        random,
        {"name": random.choice(_NAMES), "a": a, "b": b, "c": a * x + b},
    )
    return text, [f"{a * x + b} - {b} = {a * x}", f"{a * x} / {a} = {x}"], x


def _average(random: Random) -> tuple[str, list[str], int]:
    count, mean = random.randint(3, 5), random.randint(10, 60)
    values = [mean + random.randint(-9, 9) for _ in range(count - 1)]
    values.append(mean * count - sum(values))
    total = " + ".join(map(str, values))
    text = fill(
        "In {count} [days|weeks|games], {name} [collects|counts|scores] {values}. What is the average?",
        random,
        {
            "count": count,
            "name": random.choice(_NAMES),
            "values": ", ".join(map(str, values[:-1])) + f" and {values[-1]}",
        },
    )
    return text, [f"{total} = {sum(values)}", f"{sum(values)} / {count} = {mean}"], mean


_KINDS: Final[tuple[Callable[[Random], tuple[str, list[str], int]], ...]] = (
    _story, _story, _story, _shopping, _work, _journey, _percentage, _equation, _average,
)  # fmt: skip


def word_problem(random: Random) -> tuple[str, str]:
    """One problem and its worked answer."""
    text, steps, result = random.choice(_KINDS)(random)
    lead = random.choice(("First", "To begin", "We compute"))
    worked = "\n".join(f"{lead if i == 0 else 'then'}: {step}." for i, step in enumerate(steps))
    return text, f"{worked}\nThe answer is {result}."


# ---- Agreements ------------------------------------------------------------------------------------------------------

_FIRMS: Final = _words(
    "Alder Borough Cedar Dunmore Eastgate Fairholm Granite Harrow Inverness Juniper Kestrel Lindqvist Marlow Northam "
    "Orchard Pemberton Quayside Ravensworth Sterling Thornbury Upland Vantage Westbrook Yarrow"
)
_TRADES: Final = (
    "Analytics",
    "Archives",
    "Foods",
    "Freight",
    "Health",
    "Insurance",
    "Laboratories",
    "Press",
    "Textiles",
    "Works",
)
_FORMS: Final = ("Limited", "LLC", "GmbH", "Inc.", "S.A.", "Cooperative", "Foundation", "B.V.")
_COURTS: Final = (
    "Geneva",
    "Dublin",
    "Ontario",
    "New South Wales",
    "Bavaria",
    "Delaware",
    "Scotland",
    "Singapore",
    "Utrecht",
    "Oslo",
)
_MONTHS: Final = _words("January February March April May June July August September October November December")
_SUBJECTS: Final = (
    ("Data Licence Agreement", "Licensor", "Licensee", "the Data Set", "licence fee"),
    ("Services Agreement", "Provider", "Client", "the Services", "service charge"),
    (
        "Confidentiality Agreement",
        "Disclosing Party",
        "Receiving Party",
        "the Confidential Information",
        "processing fee",
    ),
    ("Supply Agreement", "Supplier", "Purchaser", "the Goods", "purchase price"),
    ("Lease of Premises", "Landlord", "Tenant", "the Premises", "rent"),
    ("Software Maintenance Agreement", "Contractor", "Customer", "the Software", "maintenance fee"),
    ("Research Consortium Agreement", "Coordinator", "Member", "the Project Results", "contribution"),
    ("Loan Agreement", "Lender", "Borrower", "the Principal Sum", "interest"),
)
_CLAUSES: Final[Mapping[str, tuple[str, ...]]] = {
    "Grant": (
        "Subject to [the terms of this Agreement|Clause {n} and to payment of the {fee}], the {one} [hereby grants|grants] to "
        "the {two} a [non-exclusive|non-transferable|limited], [revocable|royalty-bearing] right to use {subject} for "
        "[internal|commercial|scientific] purposes [and for no other purpose|within the Territory] during the Term.",
        "The {one} shall [make {subject} available|provide {subject}] to the {two} [within {days} days of|not later than "
        "{days} days after] the Effective Date, and the {two} shall [accept|take] the same [in accordance with|under] "
        "Schedule {n}.",
    ),
    "Payment": (
        "In consideration [of the rights granted herein|thereof], the {two} shall pay to the {one} a {fee} of {money} "
        "[per annum|per quarter|per month], [exclusive of any applicable taxes|without set-off or deduction], within {days} "
        "days [of receipt of a valid invoice|of the date of invoice].",
        "Any {fee} not paid when due shall bear interest at [a rate of {percent} per cent|{percent} per cent] per annum "
        "[above the base rate|until paid in full], and the {one} may [suspend performance|withhold delivery] until all "
        "arrears [are discharged|have been settled].",
    ),
    "Confidentiality": (
        "Each party [shall keep|undertakes to keep] in [strict confidence|confidence] all information [disclosed by|received "
        "from] the other which is [marked as confidential|by its nature confidential], and shall not disclose it to any third "
        "party without the prior written consent of [that other party|the discloser].",
        "The obligations [in this Clause|of confidence herein] shall not apply to information which (a) is or becomes [publicly "
        "known|part of the public domain] otherwise than by breach; (b) was [lawfully|already] in the possession of the "
        "recipient; or (c) is required to be disclosed by [law|order of a court of competent jurisdiction].",
    ),
    "Warranties": (
        "The {one} [warrants and represents|warrants] that it has [full power and authority|the right] to enter into this "
        "Agreement and that {subject} [does not infringe|will not infringe] the [rights|intellectual property] of any person.",
        "Except as [expressly|otherwise] set forth herein, {subject} [is|are] provided as [seen|found], and all warranties, "
        "[conditions and terms|whether express or implied], including any warranty of [fitness for purpose|satisfactory "
        "quality|title], are [excluded|disclaimed] to the fullest extent permitted by law.",
    ),
    "Limitation of Liability": (
        "[Neither party shall|In no event shall either party] be liable to the other for any [indirect|consequential|special] "
        "loss, [loss of profit|loss of goodwill] or [business interruption|loss of anticipated savings], [howsoever "
        "arising|whether in contract, tort or otherwise].",
        "The aggregate liability of the {one} under [this Agreement|this Clause {n}] shall not exceed [the sum of {money}|the "
        "{fee} paid in the preceding {months} months], save that nothing herein limits liability for [fraud|death or "
        "personal injury caused by negligence].",
    ),
    "Indemnity": (
        "The {two} shall indemnify [and hold harmless|and keep indemnified] the {one} against all [claims, damages and "
        "costs|losses and liabilities] arising [out of|from] any breach of Clause {n} by the {two}, its [officers|employees] or "
        "[agents|sub-contractors].",
    ),
    "Term and Termination": (
        "This Agreement [commences|shall commence] on the Effective Date and [continues|shall remain in force] for {months} "
        "months, unless [sooner|earlier] terminated [in accordance with its terms|pursuant to Clause {n}].",
        "Either party may terminate this Agreement by [giving|serving] not less than {days} days' notice in writing if the "
        "other [commits a material breach|becomes insolvent] and [fails to remedy it|such breach is not cured] within {days} "
        "days of [being required to do so|notice thereof].",
        "Upon [expiry or termination|termination for any cause], the {two} shall [forthwith|promptly] [return or destroy|cease "
        "all use of] {subject}, and the provisions which by their nature [survive|are intended to survive] shall continue.",
    ),
    "Assignment": (
        "The {two} may not assign, [sublicense|sublet] or otherwise transfer [any of its rights|this Agreement], in whole or in "
        "part, without the prior written consent of the {one}, [such consent not to be unreasonably withheld|which may be "
        "refused at its sole discretion].",
    ),
    "Force Majeure": (
        "No party shall be [in breach|liable for delay] where performance is prevented by [events|circumstances] beyond its "
        "reasonable control, including [fire|flood|war|strike|an act of government], provided that it [notifies|gives notice "
        "to] the other within {days} days.",
    ),
    "Notices": (
        "Any notice [required|permitted] hereunder shall be in writing and shall be [delivered by hand|sent by registered "
        "post|sent by courier] to the [registered office|address stated above], and shall be deemed received [on delivery|"
        "{days} days after posting].",
    ),
    "Governing Law": (
        "This Agreement [shall be governed by|is governed by] and construed in accordance with the laws of {court}, and the "
        "parties [submit to|irrevocably submit to] the [exclusive|non-exclusive] jurisdiction of [its courts|the courts "
        "thereof].",
        "Any dispute arising [out of or in connection with|under] this Agreement shall be [referred to and finally resolved "
        "by arbitration|settled by mediation in the first instance] in {court}, before [a sole arbitrator|three arbitrators].",
    ),
    "General": (
        "This Agreement [constitutes|sets out] the entire agreement between the parties [with respect to its subject "
        "matter|and supersedes all prior understandings], and no [amendment|variation] shall be effective unless [made in "
        "writing|signed by both parties].",
        "If any provision [hereof|of this Agreement] is held to be [invalid|unenforceable], the [remaining provisions|"
        "remainder] shall not be affected [thereby|and shall continue in full force].",
        "No failure or delay by the {one} in exercising any [right|remedy] shall [operate as|be construed as] a waiver "
        "[thereof|of that right].",
    ),
}
_OPENING: Final = (
    "This {title} is [made|entered into] on {day} {month} {year} [between|by and between]:\n\n(1) {first}, [a company "
    "incorporated in|having its registered office in] {place} (the {one}); and\n\n(2) {second}, [of|established in] {court} "
    "(the {two}).\n\nWHEREAS the {one} [owns or controls|is entitled to dispose of] {subject}, and the {two} [wishes|desires] "
    "to [obtain|acquire] certain rights therein;\n\nNOW, THEREFORE, [in consideration of the mutual covenants|for good and "
    "valuable consideration], the parties agree as follows:"
)


def agreement(random: Random) -> str:
    """One agreement of eight to twelve clauses between two made-up parties."""
    title, one, two, subject, fee = random.choice(_SUBJECTS)
    names = random.sample(_FIRMS, 4)
    firms = [f"{a} {random.choice(_TRADES)} {random.choice(_FORMS)}" for a in names[:2]]
    terms: dict[str, str | int] = {"title": title, "one": one, "two": two, "subject": subject, "fee": fee}
    terms |= {"first": firms[0], "second": firms[1], "place": random.choice(_COURTS), "court": random.choice(_COURTS)}
    terms |= {"day": random.randint(1, 28), "month": random.choice(_MONTHS), "year": random.randint(1996, 2025)}
    headings = list(_CLAUSES)
    chosen = sorted(random.sample(range(len(headings)), random.randint(8, len(headings))))
    parts = [title.upper(), fill(_OPENING, random, terms)]
    for number, index in enumerate(chosen, 1):
        parts.append(f"{number}. {headings[index].upper()}\n\n{_clause(random, headings[index], number, terms)}")
    parts.append(f"IN WITNESS WHEREOF the parties have executed this {title} on the date first above written.")
    return "\n\n".join(parts)


def _clause(random: Random, heading: str, number: int, terms: Mapping[str, str | int]) -> str:
    variants = _CLAUSES[heading]
    chosen = random.sample(variants, random.randint(1, len(variants)))
    lines = []
    for position, template in enumerate(chosen, 1):
        figures: dict[str, str | int] = {
            "n": random.randint(2, 14),
            "days": random.choice((5, 7, 10, 14, 21, 30, 45, 60, 90)),
        }
        figures |= {"months": random.choice((6, 12, 18, 24, 36, 60)), "percent": random.randint(2, 12)}
        figures["money"] = (
            f"{random.choice(('EUR', 'USD', 'GBP', 'CHF'))} {random.randint(2, 900)},{random.randint(0, 9)}00"
        )
        text = fill(template, random, {**terms, **figures})
        lines.append(f"{number}.{position} {text}")
    return "\n\n".join(lines)
