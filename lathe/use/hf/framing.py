"""The ids that a folder's tokenizer puts before a text."""

from pathlib import Path

from lathe.reading import is_of
from lathe.terminal import print_note
from lathe.text.beside import read_if_there, text_of
from lathe.text.tokenizer import Tokenizer
from lathe.use.hf.find import read_file

# Our exports say in tokenizer_config.json that prompts begin with this token, which their
# tokenizer, for the sake of other clients, does not put there.
PROMPTS_BEGIN = "prompts_begin_with"
OUR_CARD = "tags: [lathe]"  # on the card of those exports that did not yet say so


def ids_before_text(folder: Path, tokenizer: Tokenizer) -> list[int]:
    """The ids that the folder's tokenizer puts before a text, as in transformers. ValueError where
    it names a token that is not there."""
    about = read_if_there(folder / "tokenizer_config.json")
    if PROMPTS_BEGIN in about or is_earlier_export(folder):
        return [tokenizer.eot_id]
    path = folder / "tokenizer.json"
    content = read_file(path) if path.is_file() else {}
    processor = content.get("post_processor")
    if "add_bos_token" not in about and "add_eos_token" not in about and processor:
        before, after = ids_around(processor, path)
    else:
        before, after = [], []
        if about.get("add_bos_token") and about.get("bos_token"):
            before = [id_of(text_of(about["bos_token"]), content, folder)]
        if about.get("add_eos_token") and about.get("eos_token"):
            after = [id_of(text_of(about["eos_token"]), content, folder)]
    unknown = [i for i in before if not is_of(i, int) or not 0 <= i < tokenizer.vocab_size]
    if unknown:
        raise ValueError(f"{folder}: its texts are to begin with {unknown[0]!r:.40}, no token's id")
    if after:
        print_note(
            f"{folder}: its tokenizer ends every text with token {after[-1]}, which is left out "
            "here: a prompt is to go on"
        )
    return before


def is_earlier_export(folder: Path) -> bool:
    card = folder / "README.md"
    if not card.is_file():
        return False
    return OUR_CARD in card.read_text(encoding="utf-8", errors="replace")[:500]


def ids_around(processor: dict, path: Path) -> tuple[list[int], list[int]]:
    """(ids before a text, ids after it) by the post_processor of a tokenizer.json."""
    kind = processor["type"]
    if kind == "ByteLevel":  # which moves offsets
        return [], []
    if kind == "Sequence":
        before, after = [], []
        for inner in processor["processors"]:
            outer_before, outer_after = ids_around(inner, path)
            before = outer_before + before
            after = after + outer_after
        return before, after
    if kind in ("BertProcessing", "RobertaProcessing"):
        return [processor["cls"][1]], [processor["sep"][1]]
    if kind == "TemplateProcessing":
        pieces = processor["single"]
        (cut,) = [i for i, piece in enumerate(pieces) if "Sequence" in piece]
        names = [piece.get("SpecialToken", {}).get("id") for piece in pieces]
        ids = [processor["special_tokens"][name]["ids"] if name else [] for name in names]
        return sum(ids[:cut], []), sum(ids[cut:], [])
    raise ValueError(f"{path}: post_processor is a {kind}, which lathe does not know")


def id_of(token: str | None, content: dict, folder: Path) -> int:
    """Of a token by its text. content: a tokenizer.json's, or {} where there is vocab.json."""
    for added in content.get("added_tokens") or []:
        if added["content"] == token:
            return added["id"]
    vocab = content["model"]["vocab"] if content else read_file(folder / "vocab.json")
    if isinstance(vocab, dict) and token in vocab:
        return vocab[token]
    raise ValueError(
        f"{folder}: tokenizer_config.json has {token!r} put beside texts, which is no token"
    )
