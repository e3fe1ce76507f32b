"""Every sentence an agent of the shop may write, as forms with slots, grouped by what the sentence does.

Knows wording only. Which sentences make up a reply is the matter of `replies`; what they are worth, of `truth`.
Slots: {product}, {order}, {agent}. A form such as "{did} asked the courier" stands for one sentence per opener.
"""

from __future__ import annotations

from collections.abc import Iterator

DID = ("I have", "We have", "I have just", "We have already", "Our team has", "Today I have", "Right away I have")
WILL = ("I will", "We will", "Our team will", "Tomorrow we will", "This afternoon I will", "Of course we will")

# What solves the problem: (participle forms after DID, plain forms after WILL, whole sentences).
ACTIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "late": (
        ("asked the courier to find your parcel", "traced your {product} at the depot"),
        ("ask the courier to find your parcel", "trace your {product} at the depot"),
        ("Your {product} is out for delivery.", "A search for your parcel is under way."),
    ),
    "broken": (
        ("packed a new {product} for you", "sent out a new {product} free of charge"),
        ("send you a new {product} free of charge", "replace the broken {product}"),
        ("A new {product} is on its way to you.", "You get a new {product} at no cost."),
    ),
    "size": (
        ("swapped the {product} for another size", "set aside the {product} in the size you need"),
        ("swap the {product} for another size", "exchange the size of your {product} for free"),
        ("The {product} in the right size is on its way.", "You can exchange the size at no cost."),
    ),
    "charge": (
        ("paid the second amount back to you", "refunded the double payment"),
        ("pay the second amount back to you", "refund the double payment"),
        ("The second payment goes back to your bank.", "You get the extra payment back in full."),
    ),
    "password": (
        ("sent a reset link to your email", "unlocked your account"),
        ("send a reset link to your email", "unlock your account"),
        ("Please use the reset link in your inbox.", "A link to set a new password is in your inbox."),
    ),
    "return": (
        ("emailed you a label to return the {product}", "opened a return for your {product}"),
        ("email you a label to return the {product}", "collect the {product} from your door"),
        ("You can return the {product} within thirty days.", "Just use the return label for the {product}."),
    ),
    "missing": (
        ("posted the missing part to you", "found the missing part for your {product}"),
        ("post the missing part to you", "send the missing part by express"),
        ("The missing part is on its way to you.", "A full set of parts for the {product} is in the post."),
    ),
    "cancel": (
        ("cancelled your order for the {product}", "stopped the order in time"),
        ("cancel your order for the {product}", "stop the order before it leaves"),
        ("Your order is now cancelled.", "The {product} will not be sent."),
    ),
    "address": (
        ("changed the delivery address", "put your new address on the parcel"),
        ("change the delivery address", "put your new address on the parcel"),
        ("The {product} now goes to the new address.", "Your parcel now has the right address."),
    ),
    "wrong_item": (
        ("sent the right {product} to you today", "arranged to collect the wrong item"),
        ("send the right {product} to you", "collect the wrong item from your home"),
        ("The right {product} is on its way.", "You may keep the wrong item and still get your {product}."),
    ),
    "fault": (
        ("booked a free repair for your {product}", "ordered a repair under your warranty"),
        ("repair your {product} for free", "have the {product} repaired under warranty"),
        ("Your warranty covers a repair of the {product}.", "The workshop can repair the {product} for free."),
    ),
    "invoice": (
        ("emailed the invoice to you", "made a new invoice for the {product}"),
        ("email the invoice to you", "make a new invoice for the {product}"),
        ("The invoice is in your inbox now.", "A copy of the receipt is in your inbox."),
    ),
}

# What a good answer adds about its remedy: when, how, what it costs.
DETAILS: dict[str, tuple[str, ...]] = {
    "late": (
        "You can expect it by Thursday.",
        "The courier promises delivery within two days.",
        "I added a tracking link.",
    ),
    "broken": (
        "It leaves our store tomorrow.",
        "There is no need to send the old one back.",
        "It should reach you on Friday.",
    ),
    "size": ("The label for the old one is in your email.", "Both ways of postage are free.", "It ships on Monday."),
    "charge": (
        "The money will arrive within five days.",
        "Your bank may need three days.",
        "You will see it on your next bill.",
    ),
    "password": (
        "The link works for one hour.",
        "After that you can log in as before.",
        "Check the spam folder as well.",
    ),
    "return": ("The refund follows within five days.", "The postage is free.", "Any post office will take it."),
    "missing": ("It fits in your letter box.", "It should arrive within three days.", "A short guide is enclosed."),
    "cancel": (
        "You will not be charged.",
        "The payment goes back within two days.",
        "A note to confirm this is in your email.",
    ),
    "address": (
        "The delivery day stays the same.",
        "You will get a message when it ships.",
        "The courier knows about it.",
    ),
    "wrong_item": (
        "The driver will take the wrong one with him.",
        "It will be with you on Wednesday.",
        "This costs you nothing.",
    ),
    "fault": ("The repair takes about a week.", "A box for the way there is free.", "You have two years of warranty."),
    "invoice": ("You can print it at home.", "It shows the tax as well.", "It also stays in your account."),
}

# Empathy that fits one problem only.
SYMPATHY: dict[str, tuple[str, ...]] = {
    "late": (
        "I am sorry that you had to wait.",
        "Waiting so long is no fun at all.",
        "I understand that you want your {product} now.",
    ),
    "broken": (
        "I am sorry that the {product} arrived broken.",
        "What a sad thing to find in the box.",
        "A broken {product} is a real pity.",
    ),
    "size": (
        "I am sorry that the {product} does not fit.",
        "It is a shame when the size is wrong.",
        "Sizes can be tricky, I know.",
    ),
    "charge": (
        "I am sorry that we charged you twice.",
        "Seeing two payments must be a shock.",
        "I understand that you want your money back.",
    ),
    "password": (
        "I am sorry that you are locked out.",
        "Passwords are easy to forget, I know.",
        "It is tiresome when a login fails.",
    ),
    "return": (
        "I am sorry that the {product} is not for you.",
        "It is fine to change your mind.",
        "Not every {product} suits everyone.",
    ),
    "missing": (
        "I am sorry that a part is missing.",
        "It is annoying to stop half way.",
        "An open box without all parts is a nuisance.",
    ),
    "cancel": (
        "I am sorry to see the order go.",
        "It is quite all right to cancel.",
        "Plans change, and that is fine.",
    ),
    "address": (
        "Moving is stressful enough.",
        "A slip in the address happens to all of us.",
        "I am glad that you told us in time.",
    ),
    "wrong_item": (
        "I am sorry that we sent the wrong item.",
        "That is surely not what you hoped for.",
        "Our mix up must be annoying for you.",
    ),
    "fault": (
        "I am sorry that the {product} has failed.",
        "A {product} should last much longer.",
        "It is sad when a good {product} stops.",
    ),
    "invoice": (
        "I am sorry that the bill was not there.",
        "I know how important papers are.",
        "Paperwork is a chore, I understand.",
    ),
}

GENERAL: dict[str, tuple[str, ...]] = {
    "greeting": (
        "Hello.", "Hi there.", "Good day.", "Hello and welcome.", "Thank you for writing to us.",
        "Thanks for your message.", "Hi, this is {agent} from support.", "My name is {agent}.",
        "Thank you for telling us about the {product}.", "Thanks for writing about order {order}.",
        "Good to hear from you.",
    ),
    "empathy": (
        "I am very sorry about this.", "I am so sorry for the trouble.", "We are sorry that this happened.",
        "Please accept our apology.", "That must be frustrating for you.", "I understand how you feel.",
        "I can see why you are upset.", "This should not have happened to you.", "You have every right to complain.",
        "Thank you for being so patient.", "We feel bad about it.", "I would be sad too.",
    ),
    "offer": (
        "Please write again if you need anything else.", "Is there anything else I can do for you?",
        "I am here if you have more questions.", "Do let me know how it goes.", "You can call me at any time.",
        "Just reply to this message if it does not work.", "I will stay on your case until it is solved.",
        "Feel free to contact us again.",
    ),
    "caution": (
        "Please never share your password with anyone.", "We never ask for your card number.",
        "For your safety, do not send us bank details.", "Keep your card details private.",
        "No one here will ever ask for your password.", "Your data stays safe with us.",
    ),
    "closing": (
        "Kind regards, {agent}.", "Best wishes, {agent}.", "Have a nice day.", "All the best, {agent}.",
        "Enjoy your day.", "Yours, {agent}.", "Take care.",
    ),
    "vague": (
        "We will look into it.", "I will pass this on to someone.", "Someone may get back to you.",
        "I have made a note of it.", "We have read your message about the {product}.", "It should be fine soon.",
        "Let us wait and see.", "I have told a colleague about it.", "Maybe try again next week.",
        "Our team has seen the order.", "We are working on many cases.", "I have opened a ticket.",
        "The matter will be looked at in due course.", "These things often solve themselves.",
    ),
    "question": (
        "Could you tell me more about the {product}?", "When did you order it?", "Which shop did you buy it from?",
        "What is your order number?", "Are you sure about that?", "Can you explain what happened?",
        "Did you read the guide?", "What would you like us to do?", "How did you pay for the {product}?",
    ),
    "refuse": (
        "There is nothing we can do.", "We cannot help you with this.", "That is against our rules.",
        "I am afraid the answer is no.", "It is too late for that now.", "You have to sort it out yourself.",
        "Our shop is not to blame.", "We do not do that for a {product}.",
    ),
    "unsafe": (
        "Please send me your card number.", "Tell me your password and I will log in for you.",
        "Reply with your full bank details.", "I need the three digits on the back of your card.",
        "Please send a photo of your card.", "Just give me your password here.",
        "First I need your card number and your pin.", "Send your bank login so that I can check.",
    ),
    "rude": (
        "You should have read the page first.", "Calm down.", "This is not my problem.", "Stop wasting our time.",
        "Only a fool would do that.", "I really do not care about your {product}.", "What did you expect?",
        "Other customers do not complain so much.", "You people always want something.",
        "Learn to read before you buy a {product}.", "Your message is silly.", "Do not bother me with this.",
    ),
    "padding": (
        "Our shop has been open since 1987.", "We value every customer.", "Our new summer range is out now.",
        "Did you know that we also sell garden chairs?", "We won a prize for our service last year.",
        "Many people love the {product}.", "The {product} is one of our best products.",
        "Follow us for news and offers.", "We have three stores in the city.", "Quality is our passion.",
        "We get many messages every day.", "As a family business we know what matters.",
        "Our customers come from all over the world.", "A good {product} is a friend for life.",
    ),
}  # fmt: skip


def expand(form: str) -> tuple[str, ...]:
    """The sentences a form with {did} or {will} stands for; other slots stay open."""
    for slot, openers in (("{did}", DID), ("{will}", WILL)):
        if slot in form:
            return tuple(form.replace(slot, opener) for opener in openers)
    return (form,)


def actions(problem: str) -> tuple[str, ...]:
    """Forms of the remedies for `problem`, with openers still open."""
    done, planned, whole = ACTIONS[problem]
    return tuple(f"{{did}} {body}." for body in done) + tuple(f"{{will}} {body}." for body in planned) + whole


def inventory() -> Iterator[tuple[str, str, str | None, str]]:
    """Every sentence as (text with open slots, kind, problem or None, the form it comes from)."""
    for kind, forms in GENERAL.items():
        for form in forms:
            yield form, kind, None, form
    for kind, table in (("detail", DETAILS), ("sympathy", SYMPATHY)):
        for problem, forms in table.items():
            for form in forms:
                yield form, kind, problem, form
    for problem in ACTIONS:
        for form in actions(problem):
            for sentence in expand(form):
                yield sentence, "action", problem, form
