#!/usr/bin/env python3
"""The text, its vocabulary and its tokens.

usage: prepare.py WORK [--vocabulary N]

Asks Debian's `bible` (package bible-kjv) for the whole King James Version, holds out every 20th chapter, makes a vocabulary
by byte pair encoding of the other chapters and writes to the folder WORK: train.txt and valid.txt (a verse a line),
vocabulary.json, and train.npz and valid.npz (tokens, and where verses begin; a chapter closes with the end token).

Nothing is random: the same package gives the same files.
"""
import argparse
import collections
import hashlib
import json
import os
import re
import subprocess
import sys

import numpy

HOLD_OUT = 20  # chapters number 19, 39, ... are not trained on
SPACE = "\u2581"
UNKNOWN, BEGIN, END, FIRST_BYTE = 0, 1, 2, 3
SPECIALS = ["<unk>", "<s>", "</s>"]
# A space belongs to the word behind it; a piece is never more than a word, and punctuation stays alone.
WORD = re.compile(f"{SPACE}?[A-Za-z']+|{SPACE}?[^A-Za-z'{SPACE}]|{SPACE}")


def read_chapters():
    """Lists of verses, in order."""
    try:
        lines = subprocess.run(["bible", "-f", "gen1:1-rev22:21"], check=True, capture_output=True, text=True).stdout
    except FileNotFoundError:
        sys.exit("prepare.py: no program `bible`: apt-get install bible-kjv")
    chapters = collections.OrderedDict()
    for line in lines.splitlines():
        place, verse = line.split(" ", 1)
        chapters.setdefault(place.split(":")[0], []).append(verse.strip())
    verses = sum(len(chapter) for chapter in chapters.values())
    if (len(chapters), verses) != (1189, 31102):
        sys.exit(f"prepare.py: {len(chapters)} chapters and {verses} verses; the King James Version has 1189 and 31102")
    return list(chapters.values())


def merge(symbols, text):
    """Neighbours whose texts make `text` become one, from the left."""
    merged, i = [], 0
    while i < len(symbols):
        if i + 1 < len(symbols) and symbols[i] + symbols[i + 1] == text:
            merged.append(text)
            i += 2
        else:
            merged.append(symbols[i])
            i += 1
    return merged


def make_pieces(text, n_vocabulary):
    """Pieces in the order of their merging, then single characters."""
    words = collections.Counter(WORD.findall(text.replace(" ", SPACE)))
    words.pop("\n", None)  # a byte token
    spellings = {word: list(word) for word in words}
    counts, places = collections.Counter(), collections.defaultdict(set)

    def count(word, sign):
        for left, right in zip(spellings[word], spellings[word][1:]):
            counts[left + right] += sign * words[word]
            places[left + right].add(word)

    for word in words:
        count(word, 1)
    characters = sorted(set("".join(words)))
    pieces = []
    for _ in range(n_vocabulary - len(SPECIALS) - 256 - len(characters)):
        best = max(counts, key=lambda piece: (counts[piece], piece))
        pieces.append(best)
        for word in sorted(places.pop(best)):
            count(word, -1)
            spellings[word] = merge(spellings[word], best)
            count(word, 1)
        counts.pop(best, None)
    return pieces, characters


class Vocabulary:
    """Texts and scores of a SentencePiece vocabulary of BPE, as GGUF files hold it ("llama")."""

    def __init__(self, pieces, characters):
        self.texts = SPECIALS + [f"<0x{byte:02X}>" for byte in range(256)] + pieces + characters
        self.scores = [0.0] * (len(SPECIALS) + 256) + [-float(i) for i in range(len(pieces) + len(characters))]
        self.n_bytes_end = len(SPECIALS) + 256
        self.ids = {text: i for i, text in enumerate(self.texts) if i >= self.n_bytes_end}
        self.known_words = {}

    def encode_word(self, word):
        symbols = list(word)
        while True:
            best = None
            for i in range(len(symbols) - 1):
                token = self.ids.get(symbols[i] + symbols[i + 1])
                if token is not None and (best is None or self.scores[token] > self.scores[best[1]]):
                    best = i, token
            if best is None:
                break
            symbols[best[0] : best[0] + 2] = [symbols[best[0]] + symbols[best[0] + 1]]
        tokens = []
        for symbol in symbols:
            known = self.ids.get(symbol)
            tokens += [known] if known is not None else [FIRST_BYTE + byte for byte in symbol.encode()]
        return tokens

    def encode(self, text):
        tokens = []
        for word in WORD.findall(text.replace(" ", SPACE)):
            if word not in self.known_words:
                self.known_words[word] = self.encode_word(word)
            tokens += self.known_words[word]
        return tokens


def tokenize(vocabulary, chapters):
    tokens, starts = [], []
    for chapter in chapters:
        for number, verse in enumerate(chapter):
            starts.append(len(tokens))
            tokens += vocabulary.encode(verse + ("\n" if number + 1 < len(chapter) else ""))
        tokens.append(END)
    return numpy.array(tokens, numpy.uint16), numpy.array(starts, numpy.int32)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("work")
    parser.add_argument("--vocabulary", type=int, default=1280)
    options = parser.parse_args()
    os.makedirs(options.work, exist_ok=True)
    chapters = read_chapters()
    parts = {
        "train": [chapter for i, chapter in enumerate(chapters) if i % HOLD_OUT != HOLD_OUT - 1],
        "valid": [chapter for i, chapter in enumerate(chapters) if i % HOLD_OUT == HOLD_OUT - 1],
    }
    texts = {name: "".join("\n".join(chapter) + "\n" for chapter in part) for name, part in parts.items()}
    vocabulary = Vocabulary(*make_pieces(texts["train"], options.vocabulary))
    with open(os.path.join(options.work, "vocabulary.json"), "w", encoding="utf-8") as file:
        json.dump({"texts": vocabulary.texts, "scores": vocabulary.scores}, file)
    for name, part in parts.items():
        tokens, starts = tokenize(vocabulary, part)
        numpy.savez(os.path.join(options.work, f"{name}.npz"), tokens=tokens, starts=starts)
        with open(os.path.join(options.work, f"{name}.txt"), "w", encoding="utf-8") as file:
            file.write(texts[name])
        digest = hashlib.sha256(texts[name].encode()).hexdigest()
        print(f"{name}: {len(part)} chapters, {len(starts)} verses, {len(texts[name])} bytes, {len(tokens)} tokens, sha256 {digest}")


if __name__ == "__main__":
    main()
