"""What GPT-2 laid down for byte-level BPE (Radford et al. 2019), and others have kept since."""

EOT = "<|endoftext|>"

# How text is cut into pieces before pairs are merged; with possessive groups, which run faster.
# Own vocabularies use it too. llama.cpp has it (as "gpt-2"), but its converter knows tokenizers by
# a hash of their ids: it takes an own vocabulary only where it is told which pattern it has.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"


def printable_bytes() -> dict[str, int]:
    """{character: byte} of the stand-ins with which vocabularies are written as text.

    Visible Latin-1 characters stand for themselves, U+0100 and on for the other bytes in turn.
    """
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    byte_of = {chr(byte): byte for byte in visible}
    hidden = [byte for byte in range(256) if byte not in visible]
    for k, byte in enumerate(hidden):
        byte_of[chr(256 + k)] = byte
    return byte_of
