"""Key rings: who can open what was sealed. A data key seals one snapshot, and every ring wraps that data key in its own way."""
