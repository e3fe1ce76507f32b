"""Every error that Alignstar raises on purpose. Each message is one sentence: the value, the rule, the remedy.

AlignstarError
├── UserError            what the user gave cannot be done; the command line exits with 2   (also a ValueError)
│   ├── OptionError      an option's value, or an unknown option or method
│   ├── ModelError       a path, id or checkpoint that cannot be used as asked
│   ├── PromptError      a prompt (empty, too long) or a prompts file (with its line)
│   └── NeedsError       the method or command needs a model, a capability or an extra that is missing
└── FailedError          something failed while it ran; the command line exits with 1       (also a RuntimeError)
    ├── EngineError      the engine's thread stopped, or a forward failed
    └── RewardError      a reward raised, or returned something that is no usable number
"""

from __future__ import annotations


class AlignstarError(Exception):
    """Base of every error raised on purpose."""


class UserError(AlignstarError, ValueError):
    """What the user gave cannot be done as asked; nothing was started."""


class OptionError(UserError):
    """An option's value breaks its rule, or its name is unknown."""


class ModelError(UserError):
    """A checkpoint cannot be found, or cannot be used for this role."""


class PromptError(UserError):
    """A prompt is empty, too long or unreadable."""


class NeedsError(UserError):
    """Something that the request needs is missing: a model, a backend's capability, an extra."""


class FailedError(AlignstarError, RuntimeError):
    """Something failed while it ran."""


class EngineError(FailedError):
    """The engine stopped, or a forward failed."""


class RewardError(FailedError):
    """A reward raised, or gave +inf or the wrong number of scores."""
