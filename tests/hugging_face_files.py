"""Tiny encoders and tokenizers of Hugging Face, and their folders."""

import torch
import transformers

PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "dog", "em", "##bed")
PIECES += ("##ding", "##s", "photo", "of", "!", "red")


def bert(**kwargs):
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    size |= {"intermediate_size": 16, "vocab_size": len(PIECES), "max_position_embeddings": 12}
    return transformers.BertConfig(**size | kwargs)


def distilbert():
    size = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 16, "vocab_size": len(PIECES)}
    return transformers.DistilBertConfig(**size, max_position_embeddings=12)


def roberta():
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return transformers.RobertaConfig(
        **size,
        intermediate_size=16,
        vocab_size=len(PIECES),
        max_position_embeddings=14,
        pad_token_id=0,
        type_vocab_size=1,
    )


def vocabulary_file(folder):
    path = folder / "vocab.txt"
    path.write_text("\n".join(PIECES) + "\n")
    return path


def word_pieces(folder):
    return transformers.BertTokenizerFast(str(vocabulary_file(folder)))


def write(folder, config, tokenizer=None, **options):
    """A folder as ``save_pretrained`` leaves it, with weights that are drawn from a seed."""
    torch.manual_seed(1)
    model = transformers.AutoModel.from_config(config, **options)
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return model.eval()
