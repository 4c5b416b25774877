"""Rendered text: signs of two or three words, and receipts with items, prices and a total."""

from __future__ import annotations

import random

from vllm_specvlm.zoo.scenes.canvas import COLOURS, SIDE, Canvas, Split, split_of, wording
from vllm_specvlm.zoo.scenes.sources import Sources
from vllm_specvlm.zoo.scenes.turn import Sample, Turn
from vllm_specvlm.zoo.wording import article, capital, listing

# fmt: off
_FIRST = [
    "fresh", "hot", "cold", "new", "old", "free", "best", "cheap", "no", "big", "sweet", "daily", "city", "royal",
    "happy", "golden",
]
# fmt: on
# fmt: off
_SECOND = [
    "bread", "coffee", "tea", "soup", "fish", "books", "shoes", "games", "music", "parking", "entry", "flowers",
    "tickets", "cakes", "pizza", "toys", "market", "garden", "school", "station", "museum", "hotel", "park", "bank",
]
# fmt: on
_NUMBERED = ["room", "gate", "exit", "bus", "platform", "floor"]
# fmt: off
_ITEMS = [
    "tea", "coffee", "soup", "bread", "cake", "pizza", "salad", "fish", "rice", "milk", "juice", "eggs", "apples",
    "pasta", "cheese", "nuts",
]
# fmt: on
_SHOPS = ("city cafe", "corner shop", "happy kitchen", "golden market", "royal grill", "garden bar")
WORDS: tuple[str, ...] = tuple(
    dict.fromkeys([*_FIRST, *_SECOND, *_NUMBERED, *_ITEMS, *" ".join(_SHOPS).split(), "total"])
)

_READ = (
    "What does the sign say?",
    "Read the sign.",
    "What is written here?",
    "Which words are on the sign?",
    "Please read the text in the picture.",
    "What text can you see?",
    "Can you read this for me?",
)
_SIGN_COLOUR = (
    "What color is the sign?",
    "Which color does the sign have?",
    "Tell me the color of the sign.",
    "In which color is the sign painted?",
    "What is the sign's color?",
)
_SIGN_BOTH = (
    "Describe the sign.",
    "What kind of sign is this, and what does it say?",
    "Tell me about the sign.",
    "What does this sign look like, and what is on it?",
    "Give me a description of this sign.",
)
_TOTAL = (
    "What is the total?",
    "How much was paid in total?",
    "What does the whole bill come to?",
    "Tell me the total of the receipt.",
    "How much is it altogether?",
    "What is the sum at the bottom?",
)
_PRICE = (
    "How much is the {item}?",
    "What does the {item} cost?",
    "What is the price of the {item}?",
    "Tell me the price of the {item}.",
    "Which price is printed next to the {item}?",
    "How many dollars were paid for the {item}?",
)
_BOUGHT = (
    "What was bought?",
    "Which items are on the receipt?",
    "List the items on the bill.",
    "What did the customer buy?",
    "Name everything that was paid for.",
)
_ALOUD = (
    "Read the whole receipt.",
    "What is printed on this receipt?",
    "Go through the bill line by line.",
    "Please read out the bill with all prices.",
    "Tell me everything that the receipt says.",
)
_DEAREST = (
    "What was the most expensive item?",
    "Which item cost the most?",
    "What is the highest price on the receipt, and for what?",
    "Which of the items was the dearest?",
    "What did they spend the most on?",
)


def _sign(sources: Sources, rng: random.Random, split: Split) -> Sample:
    while True:
        words = [rng.choice(_FIRST), rng.choice(_SECOND)]
        if rng.random() < 0.35:
            words = [rng.choice(_NUMBERED), str(rng.randint(1, 39))]
        if split_of(" ".join(words)) == split:
            break
    colour = rng.choice([name for name in COLOURS if name not in ("yellow", "black")])
    canvas = Canvas.plain((rng.randint(190, 235), rng.randint(195, 235), rng.randint(195, 240)))
    plate = COLOURS[colour]
    left, top = rng.uniform(6, 24), rng.uniform(40, 80)
    canvas.pen().rounded_rectangle(
        (left, top, SIDE - left, SIDE - top), rng.choice((4, 20, 40)), fill=plate, outline=(255, 255, 255), width=6
    )
    canvas.mark((left, top, SIDE - left, SIDE - top), "sign", colour)
    upper = rng.random() < 0.6
    shown = [word.upper() if upper else capital(word) for word in words]
    font = sources.font(rng, 60)
    widest = max(font.getlength(word) for word in shown)
    if widest > SIDE - 2 * left - 30:
        font = font.font_variant(size=int(60 * (SIDE - 2 * left - 30) / widest))
    for index, word in enumerate(shown):
        canvas.write(SIDE / 2, SIDE / 2 + (index - 0.5) * 80, word, font, (255, 255, 255))
    text = " ".join(words)
    style = tuple(COLOURS).index(colour) % 3
    answers = (f'The sign says "{text}".', f'It reads "{text}".', f'"{capital(text)}" is written there.')
    both = (
        f'It is {article(colour)} sign with white letters. They say "{text}".',
        f'{capital(article(colour))} sign on a light ground says "{text}" in white letters.',
        f'The sign is {colour}, and on it is written "{text}".',
    )
    painted = (f"The sign is {colour}.", f"It is {article(colour)} sign.", f"{capital(colour)}.")
    turns = [
        Turn(wording(rng, split, _READ), answers[style], tuple(words)),
        Turn(wording(rng, split, _SIGN_COLOUR), painted[style], (colour,)),
        Turn(wording(rng, split, _SIGN_BOTH), both[style], (colour, *words)),
    ]
    rng.shuffle(turns)
    return Sample("read", canvas.finish(rng), tuple(canvas.marks), tuple(turns))


def dollars(amount: int) -> str:
    """ "1 dollar", "7 dollars"."""
    return f"{amount} dollar" + ("" if amount == 1 else "s")


def _receipt(sources: Sources, rng: random.Random, split: Split) -> Sample:
    while True:
        shop = rng.choice(_SHOPS)
        items = rng.sample(_ITEMS, rng.randint(2, 4))
        prices = rng.sample(range(1, 10), len(items))
        if split_of(f"{shop} {items} {prices}") == split:
            break
    total = sum(prices)
    canvas = Canvas.plain((rng.randint(120, 200), rng.randint(130, 200), rng.randint(130, 200)))
    canvas.pen().rectangle((14, 4, SIDE - 14, SIDE - 4), fill=(250, 250, 246))
    font = sources.font(rng, rng.randint(40, 46))
    ink = (20, 20, 40)
    rows = [capital(item) if rng.random() < 0.5 else item for item in items]
    pitch = min(58.0, (SIDE - 24) / (len(items) + 2))
    y = 10 + pitch / 2
    canvas.write(SIDE / 2, y, shop.title(), font.font_variant(size=34), ink)
    for item, price in zip(rows, prices, strict=True):
        y += pitch
        canvas.write(30, y, item, font, ink, anchor="lm")
        canvas.write(SIDE - 30, y, str(price), font, ink, anchor="rm")
    y += pitch
    canvas.pen().line((26, y - pitch / 2, SIDE - 26, y - pitch / 2), fill=ink, width=3)
    canvas.write(30, y, "Total", font, ink, anchor="lm")
    canvas.write(SIDE - 30, y, str(total), font, ink, anchor="rm")
    style = len(items) + total
    which = rng.randrange(len(items))
    dear = prices.index(max(prices))
    lines = [f"{item} for {dollars(price)}" for item, price in zip(items, prices, strict=True)]
    turns = [
        Turn(
            wording(rng, split, _TOTAL),
            (f"The total is {dollars(total)}.", f"It comes to {dollars(total)}.", f"{dollars(total)} in all.")[
                style % 3
            ],
            (str(total),),
        ),
        Turn(
            wording(rng, split, _PRICE).format(item=items[which]),
            (
                f"The {items[which]} costs {dollars(prices[which])}.",
                f"It is {dollars(prices[which])}.",
                f"{dollars(prices[which])} for the {items[which]}.",
            )[style % 3],
            (str(prices[which]),),
        ),
        Turn(
            wording(rng, split, _BOUGHT),
            (f"The items are {listing(items)}.", f"They bought {listing(items)}.", f"{capital(listing(items))}.")[
                style % 3
            ],
            tuple(items),
        ),
        Turn(
            wording(rng, split, _ALOUD),
            (
                f"The receipt is from {shop}. It lists {listing(lines)}. The total is {dollars(total)}.",
                f"This bill was printed at {shop}: {listing(lines)}. Altogether that makes {dollars(total)}.",
                f"{capital(shop)} sold {listing(lines)}, which comes to {dollars(total)} in all.",
            )[style % 3],
            (*items, str(total)),
        ),
        Turn(
            wording(rng, split, _DEAREST),
            (
                f"The most expensive item is the {items[dear]}, at {dollars(prices[dear])}.",
                f"It was the {items[dear]}, which cost {dollars(prices[dear])}.",
            )[style % 2],
            (items[dear],),
        ),
    ]
    rng.shuffle(turns)
    return Sample("read", canvas.finish(rng), tuple(canvas.marks), tuple(turns))


def sample(sources: Sources, rng: random.Random, split: Split) -> Sample:
    """A sign or a receipt with its questions."""
    return (_sign if rng.random() < 0.5 else _receipt)(sources, rng, split)
