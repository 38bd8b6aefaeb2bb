"""What a prompt may be: some text, not too much of it."""

from __future__ import annotations

#: More text than this is a pasted document, not a description; the text tower reads far less.
MAX_CHARACTERS = 1000


def check_prompt(text: str, what: str = "the prompt") -> str:
    """`text` without spaces around it; TypeError if it is no text, ValueError if nothing or too much is left."""
    if not isinstance(text, str):
        raise TypeError(f"{what} must be text; got {type(text).__name__}")
    text = text.strip()
    if not any(character.isalnum() for character in text):
        raise ValueError(f"{what} is empty: describe the avatar in a few words")
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"{what} has {len(text)} characters; at most {MAX_CHARACTERS} are read")
    return text
