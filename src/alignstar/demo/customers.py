"""What customers of the small shop write: products, problems and their wordings, by split.

Knows the text of messages and which wording belongs to which split. Does not know replies, rewards or models.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

SPLITS = ("train", "tuning", "demo", "evaluation")

WEARABLES = ("jacket", "shirt", "coat", "sweater", "dress", "helmet", "raincoat", "belt", "hat")
DEVICES = ("kettle", "toaster", "lamp", "radio", "clock", "heater", "printer", "blender", "fan", "camera", "speaker")
FURNITURE = ("desk", "chair", "shelf", "tent", "table", "bike", "grill", "cabinet")
OTHERS = ("backpack", "rug", "pillow", "teapot", "suitcase")
PRODUCTS = WEARABLES + DEVICES + FURNITURE + OTHERS

AGENTS = ("Mara", "Tom", "Priya", "Jonas", "Elena", "Sam")

# Ten wordings a problem: the first eight are for training, the last two for tuning. `HELD_OUT` has two for the demo
# and two for evaluation, made mostly of words that the training wordings use.
WORDINGS: dict[str, tuple[str, ...]] = {
    "late": (
        "The {product} was due last week and it has still not arrived.",
        "I am still waiting for my {product}.",
        "My parcel with the {product} is late.",
        "The {product} should have been here on Monday.",
        "Where is the {product} that I ordered two weeks ago?",
        "The delivery of my {product} is five days late.",
        "Nobody has delivered the {product} yet.",
        "The courier has not brought my {product} so far.",
        "I ordered a new {product} last month and it has still not arrived.",
        "My {product} is late and I am still waiting.",
    ),
    "broken": (
        "The {product} arrived broken.",
        "My {product} was broken when I opened the box.",
        "The {product} came with a large crack.",
        "I opened the parcel and the {product} was in pieces.",
        "The {product} was damaged on the way to me.",
        "My new {product} has a deep crack on one side.",
        "The box was crushed and the {product} inside is broken.",
        "The {product} reached me badly damaged.",
        "I opened the box today and the {product} is damaged.",
        "The {product} in the parcel was broken in pieces.",
    ),
    "size": (
        "The {product} is too small for me.",
        "I need the {product} in a larger size.",
        "The {product} does not fit.",
        "I ordered the {product} in the wrong size.",
        "The {product} is much too large.",
        "My {product} is one size too small.",
        "I tried the {product} on and it is too tight.",
        "The size of the {product} is wrong for my son.",
        "I tried the {product} on and the size is wrong.",
        "The new {product} does not fit me, it is too small.",
    ),
    "charge": (
        "You charged me twice for the {product}.",
        "I paid for the {product} two times by mistake.",
        "My bank shows two payments for one {product}.",
        "The price of the {product} was taken twice from my account.",
        "I see a double charge for the {product}.",
        "I bought one {product} but I was charged for two.",
        "There is a second payment for the {product} on my bill.",
        "The {product} appears twice on my card statement.",
        "My account shows a double charge for one {product}.",
        "I was charged twice when I bought the {product}.",
    ),
    "password": (
        "I forgot my password and cannot see my order for the {product}.",
        "I cannot log in to check on my {product}.",
        "My password no longer works, so I cannot pay for the {product}.",
        "The site does not accept my password since I bought the {product}.",
        "I am locked out of my account and want to order the {product}.",
        "I want to follow my {product} but the login fails.",
        "I lost the password for the account with my {product}.",
        "My account is locked and I need to see the bill for the {product}.",
        "The login fails and I cannot see my {product}.",
        "I forgot the password for my account when I wanted to order the {product}.",
    ),
    "return": (
        "I want to return the {product}.",
        "I changed my mind and would like to send the {product} back.",
        "How can I return my {product}?",
        "I do not like the {product} and want my money back.",
        "Can I still give the {product} back?",
        "I no longer need the {product}, so I would like to return it.",
        "The {product} is fine but I do not want to keep it.",
        "Please tell me how to send back the {product}.",
        "I would like to give my {product} back because I do not like it.",
        "I do not want the {product} and would like to send it back.",
    ),
    "missing": (
        "A part of the {product} is missing.",
        "The screws for the {product} were not in the box.",
        "My {product} came without the manual and one leg.",
        "One piece of my {product} is missing.",
        "I cannot build the {product} because two parts are missing.",
        "The bag with small parts for the {product} was empty.",
        "There is no cover in the box of the {product}.",
        "The {product} came without all of its parts.",
        "One part of my {product} was not in the box.",
        "I cannot use the {product} because a piece is missing.",
    ),
    "cancel": (
        "Please cancel my order for the {product}.",
        "I want to cancel the {product}.",
        "I ordered the {product} by mistake, please stop the order.",
        "Can you stop the order of the {product} before it leaves?",
        "I would like to cancel the {product} that I ordered today.",
        "I found a cheaper {product}, so please cancel mine.",
        "My wife also ordered a new {product}, so cancel my order.",
        "Do not send the {product}, I want to cancel it.",
        "I ordered the {product} today and want to cancel it.",
        "Please stop the order for my {product} before you send it.",
    ),
    "address": (
        "I have moved, please send the {product} to my new address.",
        "I gave the wrong address for the {product}.",
        "Can you change the delivery address for my {product}?",
        "The {product} is going to my old address.",
        "There is a mistake in the street name on my {product} order.",
        "Please send the {product} to my office and not to my home.",
        "I typed the wrong house number when I ordered the {product}.",
        "My address has changed since I ordered the {product}.",
        "Please change the address for the {product}, I have moved.",
        "I gave my old address when I ordered the {product}.",
    ),
    "wrong_item": (
        "I ordered the {product} but received something else.",
        "You sent me the wrong thing and not the {product}.",
        "In the box was a garden hose and not my {product}.",
        "I got another customer's parcel and not my {product}.",
        "The parcel does not contain the {product} that I ordered.",
        "My box had a set of forks in it but no {product}.",
        "I received the wrong article in place of the {product}.",
        "This is not the {product} that I chose, it is another model.",
        "The box did not contain my {product} but something else.",
        "I received the wrong parcel and not the {product}.",
    ),
    "fault": (
        "The {product} stopped working after two months.",
        "My {product} no longer turns on.",
        "The {product} worked for a week and then died.",
        "My {product} makes a strange noise and stops.",
        "The {product} fails after a few minutes of use.",
        "After half a year the {product} does not work any more.",
        "My {product} has a fault and shuts down.",
        "The {product} will not start since yesterday.",
        "The {product} no longer works after a few months.",
        "My {product} makes a noise and will not start any more.",
    ),
    "invoice": (
        "I need an invoice for the {product}.",
        "There was no bill with my {product}.",
        "Please send me a receipt for the {product}.",
        "My company asks for an invoice for the {product}.",
        "I cannot find the bill for my {product}.",
        "Could I have a copy of the receipt for the {product}?",
        "The invoice for the {product} has the wrong name on it.",
        "I need a bill for the {product} for my taxes.",
        "I need a copy of the invoice for my {product}.",
        "I cannot find the receipt and need a bill for the {product}.",
    ),
}

HELD_OUT: dict[str, tuple[str, str, str, str]] = {
    "late": (
        "My {product} has still not been delivered.",
        "It is two weeks now and the {product} has not arrived.",
        "The {product} is late, where is it?",
        "I am waiting for the {product} since last week.",
    ),
    "broken": (
        "My {product} arrived with a crack.",
        "The {product} was damaged when it arrived.",
        "The {product} was broken in the box.",
        "My {product} came in pieces.",
    ),
    "size": (
        "My {product} is too large and does not fit.",
        "I need a smaller size of the {product}.",
        "The {product} is too tight for me.",
        "The {product} is the wrong size.",
    ),
    "charge": (
        "I paid twice for my {product}.",
        "There are two payments for the {product} on my bill.",
        "My card was charged twice for the {product}.",
        "I see a second charge for my {product}.",
    ),
    "password": (
        "My password does not work and I want to follow my {product}.",
        "I am locked out and cannot pay for the {product}.",
        "I lost my password and cannot check on the {product}.",
        "I cannot log in to my account to order the {product}.",
    ),
    "return": (
        "How do I send my {product} back?",
        "I do not need the {product} and want to return it.",
        "I would like to return the {product}.",
        "Can I send back the {product} and get my money back?",
    ),
    "missing": (
        "Two parts of the {product} are missing.",
        "The box of my {product} came without the screws.",
        "My {product} came without one part.",
        "The small parts for my {product} are missing.",
    ),
    "cancel": (
        "I want to stop my order for the {product}.",
        "Cancel the {product}, please, I ordered it by mistake.",
        "I would like to cancel my {product} order.",
        "Please cancel the {product} before it leaves.",
    ),
    "address": (
        "The address for my {product} is wrong.",
        "Can you send the {product} to another address?",
        "I have moved and my {product} is going to the old address.",
        "I typed the wrong street for the {product}.",
    ),
    "wrong_item": (
        "You sent something else and not my {product}.",
        "I got the wrong thing, it is not the {product}.",
        "The parcel had another model and not the {product} that I ordered.",
        "I ordered the {product} but got the wrong article.",
    ),
    "fault": (
        "My {product} stopped working yesterday.",
        "The {product} does not turn on any more.",
        "My {product} worked for two months and then stopped.",
        "The {product} has a fault and no longer starts.",
    ),
    "invoice": (
        "Please send an invoice for my {product}.",
        "The bill for the {product} was not in the box, please send it.",
        "Could you send me the receipt for the {product}?",
        "My company needs a bill for the {product}.",
    ),
}
PROBLEMS = tuple(WORDINGS)

OPENINGS = (
    "Hello.", "Hi.", "Good morning.", "Good evening.", "Dear support team.", "Hello again.", "Hi there.",
)  # fmt: skip
MOODS = (
    "I am quite upset about this.",
    "This is the second time.",
    "There is no hurry.",
    "I am really annoyed.",
    "It was a gift for my mother.",
    "I need it before the weekend.",
    "I have been a customer for years.",
    "I expected better from you.",
    "I am sure it is only a small mistake.",
    "Normally your shop is very good.",
)
REQUESTS = (
    "What can you do?",
    "Please help me.",
    "Can you sort this out?",
    "Please let me know.",
    "What happens now?",
    "Thank you for your help.",
    "I hope you can help.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A customer's message and what it was made from."""

    text: str
    problem: str
    product: str
    order: str


def wordings(problem: str, *, split: str) -> tuple[str, ...]:
    """The sentences that may state `problem` in `split`; no two splits share one."""
    main, held_out = WORDINGS[problem], HELD_OUT[problem]
    return {
        "train": main[:8],
        "tuning": main[8:],
        "demo": held_out[:2],
        "evaluation": held_out[2:],
    }[split]


def products(problem: str, *, split: str) -> tuple[str, ...]:
    """The products that may meet `problem` in `split`; no two splits share a pair of problem and product."""
    fitting = {
        "size": WEARABLES,
        "fault": DEVICES,
        "missing": FURNITURE + DEVICES,
    }.get(problem, PRODUCTS)
    shift = PROBLEMS.index(problem)
    kept = {"train": (0, 1, 2, 3, 4), "tuning": (5,), "demo": (6,), "evaluation": (7,)}[split]
    return tuple(p for i, p in enumerate(fitting) if (i + shift) % 8 in kept)


def order_number(rng: random.Random, *, split: str) -> str:
    """An order number such as B42; its last digit belongs to the split alone."""
    last = {"train": "0123456", "tuning": "7", "demo": "8", "evaluation": "9"}[split]
    return f"{rng.choice('ABCDEFGH')}{rng.randrange(1, 10)}{rng.choice(last)}"


def message(rng: random.Random, *, split: str, problem: str | None = None) -> Message:
    """One customer message of two to five short sentences, from the wordings and slots of `split`."""
    problem = problem or rng.choice(PROBLEMS)
    product = rng.choice(products(problem, split=split))
    order = order_number(rng, split=split)
    parts = [rng.choice(OPENINGS)] if rng.random() < 0.6 else []
    if rng.random() < 0.7:
        parts.append(f"My order number is {order}." if rng.random() < 0.6 else f"This is about order {order}.")
    parts.append(rng.choice(wordings(problem, split=split)).format(product=product))
    if rng.random() < 0.5:
        parts.append(rng.choice(MOODS))
    if rng.random() < 0.5 or len(parts) == 1:
        parts.append(rng.choice(REQUESTS))
    return Message(text=" ".join(parts), problem=problem, product=product, order=order)
