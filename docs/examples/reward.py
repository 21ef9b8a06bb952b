"""Two reward functions as TRL's trainers call them."""


def says_the_number(completions, answer, **columns):
    """Reward 1 for a completion that holds the answer; leave out rows without one."""
    return [
        None if a is None else float(str(a) in text)
        for text, a in zip(completions, answer, strict=True)
    ]


def is_short(completions, **columns):
    """Reward texts below 200 characters, the shorter the more."""
    return [max(0.0, 1 - len(text) / 200) for text in completions]
