"""A process that compares mathematical answers: JSON lines in and out. Run as a file, it imports math-verify alone.

    {"gold": text, "answer": text}  ->  {"equal": true | false}  or  {"error": why the gold answer cannot be read}

It has no time limit of its own: `verify.MathComparer` kills it.
"""

import json
import sys


def serve(lines, out):
    from math_verify import parse, verify

    for line in lines:
        pair = json.loads(line)
        try:
            gold = _parsed(parse, pair["gold"])
            answer = _parsed(parse, pair["answer"])
            reply = {"equal": bool(answer) and bool(verify(gold, answer, timeout_seconds=None))}
            if not gold:
                reply = {"error": f"gold answer {pair['gold'][:60]!r} is no mathematical expression"}
        except Exception as error:  # whatever sympy raises on what a model wrote
            reply = {"equal": False, "note": type(error).__name__}
        out.write(json.dumps(reply) + "\n")
        out.flush()


def _parsed(parse, text):
    """As LaTeX mathematics, else as plain text."""
    found = parse(f"${text}$", parsing_timeout=None) if text.strip() else []
    return found or parse(text, parsing_timeout=None)


if __name__ == "__main__":
    serve(sys.stdin, sys.stdout)
