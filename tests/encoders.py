"""Encoders in miniature: directories of transformers and of sentence-transformers, with weights drawn at random."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers


def write_encoder(folder: Path, texts: list[str], *, hidden_size: int = 32) -> Path:
    """A BERT that reads words of `texts`, as `AutoModel` and `AutoTokenizer` load it."""
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # type: ignore[call-arg]
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.decoder = decoders.WordPiece()
    words.train_from_iterator(
        texts, trainers.WordPieceTrainer(vocab_size=400, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    )
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    folder.mkdir(parents=True)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": hidden_size, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=words.get_vocab_size(), max_position_embeddings=128, **sizes)
    BertModel(config).save_pretrained(folder)
    return folder


def write_embedder(folder: Path, texts: list[str], *, width: int) -> Path:
    """The same with mean pooling, as sentence-transformers saves it."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    encoder = Transformer(str(write_encoder(folder.with_name(folder.name + "-encoder"), texts, hidden_size=width)))
    SentenceTransformer(modules=[encoder, Pooling(width)], device="cpu").save_pretrained(str(folder))
    return folder
