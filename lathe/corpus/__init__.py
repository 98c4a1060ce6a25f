"""Files of any kind to shards, in this order:

options     what the user asks for, and the plan that it comes down to
find        which files an input means; folders: those in a folder; left_out: what is not read;
            source: one of them, and its bytes; archives: decompressed; unchanged: whether it is
            what an earlier run has read
cut         files to units of work; units: what these hold; formats: how each kind of file is cut
            and read
read        units to documents; rules: bytes and rows to text; pairs: rows to prompts and answers
tokens      documents to tokens; workers: in several processes; learn: by which tokenizer
split       for training or for validation; duplicates: or left out
build       the whole; journal: what is done, if it is interrupted; room: on the disk; report: what
            is told
own         datasets that any machine can make by itself
"""
