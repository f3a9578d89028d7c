"""Recall facts: what they look like and how they are planted in text.

A fact is the sentence "Remember: NAME VALUE." The name is one token that occurs nowhere else in the
text and the value, one token as well, follows it directly. A later repetition of the sentence asks for
the fact: after "Remember: NAME" the only way to predict the value is to look the fact up in the context.
"""
import numpy as np

VALUES = """
apple arm army arrow ash ax barley basket bear bed bell bird blood boat body bone book bow bowl brass
bread bridge brother camel candle cave chain child city cloud coal coat cord corn cow cross crown cup
dish dog door dove dust eagle ear earth eye father field fig fire fish flag flock flower foot fox garden
gate glass goat gold grass hail hand harp hat hill honey horn horse house ice iron island judge key king
lamb lamp land leaf leg lion meat milk money moon mother mouth nest net oak oil ox paper pearl pen pipe
plow pool ring river road rock rod roof rope rose sail salt sand sea seed sheep shield ship shoe silk
silver snow soap son spear spoon star steel stone
""".split()

assert len(VALUES) == len(set(VALUES)) == 128

ANSWER_WEIGHT = 3.0     # loss weight of an answer that the context determines
FRAME_WEIGHT = 0.05     # of the words around it, whose places are random


def sentence(name, value):
    return f" Remember: {name} {value}."


class FactTokens:
    """The token ids of names, values and the words around them."""

    def __init__(self, vocab, names):
        self.names = np.array([vocab.only_id(name) for name in names])
        self.values = np.array([vocab.only_id(value) for value in VALUES])
        frame = vocab.encode(sentence(names[0], VALUES[0]).strip())
        name_at = frame.index(self.names[0])
        self.before, self.after = frame[:name_at], frame[name_at + 2:]
        self.length = len(frame)
        self.answer_at = name_at + 1
        for name, value in zip(names, VALUES):
            ids = vocab.encode(sentence(name, value).strip())
            assert len(ids) == self.length, (name, value)

    def encode(self, name, value):
        """Ids of one fact; name and value are indices."""
        return [*self.before, int(self.names[name]), int(self.values[value]), *self.after]


def merge(filler, starts_sentence, inserts, length):
    """Plants sentences in filler.

    inserts: list of (position, ids, place of the answer in ids, its weight), position in the resulting
    sequence; each is moved on to the next sentence start of the filler. Returns (ids, weights) of the
    given length; what does not fit falls off the end.
    """
    ids, weights = [], []
    taken = 0
    for position, fact_ids, answer_at, answer_weight in sorted(inserts, key=lambda item: item[0]):
        wanted = max(taken, taken + position - len(ids))
        stop = starts_sentence[np.searchsorted(starts_sentence, wanted)] if wanted else 0
        ids.extend(filler[taken:stop])
        weights.extend([1.0] * (stop - taken))
        taken = stop
        fact_weights = [FRAME_WEIGHT] * len(fact_ids)
        fact_weights[answer_at - 1] = 0.0           # the name: nothing foretells it
        fact_weights[answer_at] = answer_weight
        ids.extend(fact_ids)
        weights.extend(fact_weights)
    rest = max(0, length - len(ids))
    ids.extend(filler[taken:taken + rest])
    weights.extend([1.0] * rest)
    return ids[:length], weights[:length]


def training_sequence(rng, text, facts, length, n_facts):
    """A text with n_facts facts, each stated once and asked once or twice at random distances."""
    filler, starts = text.cut(rng, length)
    names = rng.permutation(len(facts.names))[:n_facts]
    values = rng.integers(len(facts.values), size=n_facts)
    inserts = []
    for name, value in zip(names, values):
        mentions = np.sort(rng.integers(length, size=int(rng.integers(2, 4))))
        ids = facts.encode(name, value)
        for i, position in enumerate(mentions):
            inserts.append((int(position), ids, facts.answer_at, ANSWER_WEIGHT if i else 0.0))
    return merge(filler, starts, inserts, length)
