"""The things that scenes are made of: their names, the pictures that show them, and what may be said about them.

Pictures come from two collections: Noto Color Emoji (by code point) and Open Clip Art (by a pattern over the last two
parts of a file's path). Every concept has pictures of both, or several emoji, so that some can be held out.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Concept:
    """One kind of thing.

    Attributes
    ----------
    name:
        Singular, as the answers call it; ``plural`` likewise.
    group:
        "animal", "food", "plant", "vehicle" or "object".
    emoji:
        Code points of Noto glyphs.
    clips:
        Regular expression over "folder/file" of Open Clip Art, or "".
    stance:
        What it does in a scene: "sits", "is parked" ...
    remarks:
        Two sentences of general knowledge.
    """

    name: str
    plural: str
    group: str
    emoji: tuple[int, ...]
    clips: str
    stance: str
    remarks: tuple[str, str]


_TABLE = r"""
cat|cats|animal|1F408 1F431|housecats/(?!.*(post|gatti)).*|sits|Cats sleep for most of the day.|A cat can see well in the dark.
dog|dogs|animal|1F415 1F436|(mammals|dogs)/(dog|bulldog|bored_dog).*|stands|Dogs have been friends of people for thousands of years.|A dog can smell far better than we can.
horse|horses|animal|1F40E 1F434|horses/.*|stands|Horses can run soon after they are born.|A horse can sleep while it stands.
tiger|tigers|animal|1F405 1F42F|big_cats/(color_tiger|tigre|tiger).*|walks|Tigers like to swim.|No two tigers have the same stripes.
lion|lions|animal|1F981|big_cats/leone.*|rests|Lions live together in groups.|The roar of a lion can be heard from far away.
bear|bears|animal|1F43B|bears/.*|waits|Bears sleep through much of the winter.|A bear eats both plants and meat.
elephant|elephants|animal|1F418|mammals/(elephant_01|elefante|elephant_symbol).*|stands|Elephants are the largest animals on land.|An elephant drinks with the help of its trunk.
monkey|monkeys|animal|1F412 1F435 1F649|(mammals|animals)/.*monkey.*|sits|Monkeys are clever and like to climb.|A monkey uses its tail to keep its balance.
rabbit|rabbits|animal|1F407 1F430|mammals/(coniglio|bunny).*|sits|Rabbits have long ears and eat grass.|A rabbit can jump high to escape.
pig|pigs|animal|1F416 1F437|mammals/.*pig.*|stands|Pigs are among the smartest farm animals.|A pig rolls in mud to stay cool.
cow|cows|animal|1F404 1F42E|mammals/bull_.*|stands|Cows spend hours every day eating grass.|The milk we drink mostly comes from cows.
dolphin|dolphins|animal|1F42C|(mammals|fish)/dolphin.*|jumps|Dolphins are mammals and must breathe air.|A dolphin finds its food with the help of sound.
whale|whales|animal|1F40B 1F433|(mammals|fish)/(bluewhale|orca).*|swims|Whales are the largest animals in the sea.|A whale can hold its breath for a long time.
fish|fish|animal|1F41F 1F420 1F421|fish/(brown_fish|giraffe).*|swims|Fish breathe with their gills.|Many fish live together in schools.
penguin|penguins|animal|1F427|(penguin|birds)/.*(tux|penguin).*|stands|Penguins cannot fly, but they swim very well.|A penguin keeps its egg warm on its feet.
duck|ducks|animal|1F986|(birds|toys)/.*duck.*|swims|Ducks have feathers that keep water out.|A duck often makes its nest close to a pond.
eagle|eagles|animal|1F985|birds/(acquila|eagle|aquila).*|watches|Eagles can see a small animal from high above.|An eagle builds a very large nest.
owl|owls|animal|1F989|birds/(gufo|owl).*|watches|Owls hunt at night and fly without a sound.|An owl can turn its head far around.
chicken|chickens|animal|1F413 1F414|birds/(rooster|hen|gallo).*|stands|Chickens lay eggs almost every day.|A chicken scratches the ground to find food.
butterfly|butterflies|animal|1F98B|bugs/(farfalla|butterfly).*|flutters|Butterflies start their lives as caterpillars.|A butterfly tastes with its feet.
bee|bees|animal|1F41D|bugs/(flying_wasp|bee).*|hovers|Bees collect sweet juice from flowers and make honey.|A bee dances to tell the others where to find food.
ladybug|ladybugs|animal|1F41E|bugs/(ladybug|coccinella).*|crawls|Ladybugs eat many small insects.|The bright color of a ladybug warns birds.
snail|snails|animal|1F40C|bugs/lumaca.*|crawls|Snails carry their home on their back.|A snail is one of the slowest animals.
dinosaur|dinosaurs|animal|1F995 1F996|dinosaurs/dino.*|stands|Dinosaurs died out millions of years ago.|We know the dinosaur only from its bones.
lobster|lobsters|animal|1F99E 1F990|fish/crawfish.*|crawls|Lobsters have strong claws.|A lobster grows a new shell several times in its life.
apple|apples|food|1F34E 1F34F|fruit/(an_apple|apple_with_worm|apple_bitten|cartoon_apple|apple_mateya|another_apple|apple_martin|apple\.).*|lies|Apples are sweet and healthy.|An apple floats on water.
orange|oranges|food|1F34A|fruit/(orange_simple\.|orange\.|orange_dave|tile_orange|rondelle).*|lies|Oranges are full of vitamins.|An orange grows best where it is warm.
lemon|lemons|food|1F34B|fruit/(lemon\.|lemon_whole|lemon1|lemon_simple\.|lemon_half_ganson).*|lies|Lemons taste very sour.|A lemon is good with tea or fish.
pear|pears|food|1F350|fruit/(pear_simple\.|pera_|pear|green_pear).*|lies|Pears are soft and juicy when they are ripe.|A pear is wider at the bottom than at the top.
banana|bananas|food|1F34C|fruit/banana.*|lies|Bananas grow in big bunches.|A banana turns yellow when it is ripe.
cherry|cherries|food|1F352|fruit/cherr.*|lies|Cherries have a hard stone inside.|A cherry tastes best in early summer.
strawberry|strawberries|food|1F353|fruit/strawberry.*|lies|Strawberries grow close to the ground.|A strawberry carries its seeds on the outside.
grape|grapes|food|1F347|fruit/grape.*|hangs|Grapes are used to make juice and wine.|A dried grape is called a raisin.
burger|burgers|food|1F354|meats_and_eggs/.*burger.*|waits|Burgers are eaten with both hands.|A burger is often served with fries.
pizza|pizzas|food|1F355|food/pizza.*|waits|Pizza was made famous by cooks from Italy.|A pizza is baked in a very hot oven.
loaf|loaves|food|1F35E 1F956|breads_and_carbs/bread.*|lies|Bread is made of flour, water and salt.|A fresh loaf smells wonderful.
cake|cakes|food|1F382 1F370|desserts/(pink_cake|cake|birthday_cake|flat_cake).*|waits|Cakes are baked for birthdays and other parties.|A cake needs flour, eggs and sugar.
cone|cones|food|1F366|(desserts|party)/(cone|glace).*|stands|Ice cream cones melt quickly in the sun.|A cone can be eaten together with the ice cream.
cup|cups|food|2615 1F375|beverages/(coffee|mug|coffee_ganson|teacup_ganson|tazza).*|stands|Cups keep hot drinks from spilling.|A cup of tea or coffee warms you up.
tree|trees|plant|1F333 1F332|trees/.*tree_.*|grows|Trees clean the air that we breathe.|A tree can live for hundreds of years.
flower|flowers|plant|1F33B 1F337 1F33C 1F339|flowers/.*(flower|fiore|tulips|rose|daisy).*|grows|Flowers need light and water to grow.|A flower attracts bees with its color and its smell.
car|cars|vehicle|1F697 1F698|vehicles/(.*car\.|.*car_).*|is parked|Cars have four wheels and an engine.|A car should never drive too fast.
bus|buses|vehicle|1F68C 1F68D|vehicles/bus[12_].*|is parked|Buses carry many people at once.|A bus stops where people are waiting.
truck|trucks|vehicle|1F69A 1F69B|vehicles/.*truck.*|is parked|Trucks bring goods from one town to another.|A truck can carry a very heavy load.
airplane|airplanes|vehicle|2708 1F6E9|vehicles/(aircraft|military_airplane|airplane|departing).*|flies|Airplanes cross an ocean in a few hours.|An airplane needs its wings to stay in the air.
boat|boats|vehicle|26F5 1F6A4|boating/(sailboat_illustration\.|boat_).*|floats|Boats float because they push water away.|A boat with a sail is moved by the wind.
guitar|guitars|object|1F3B8|music/.*guitar.*|stands|Guitars usually have six strings.|A guitar can be played alone or in a band.
trumpet|trumpets|object|1F3BA|music/trumpet.*|lies|Trumpets are made of brass.|A trumpet is played with three valves.
violin|violins|object|1F3BB|music/(cello|violin).*|lies|Violins are played with a bow.|A violin has only four strings.
drum|drums|object|1F941|music/(war_drum|drums).*|stands|Drums give the music its beat.|A drum is played with sticks or with the hands.
ball|balls|object|26BD 1F3C0 1F3BE|sports/(soccer|football_ball|tennis_ball|baseball_ball|basket).*|lies|Balls are round so that they can roll.|A ball is all you need for many games.
balloon|balloons|object|1F388|party/(balloon-|baloon).*|floats|Balloons rise when they are filled with a light gas.|A balloon bursts when it touches something sharp.
gift|gifts|object|1F381|holiday/gift.*|waits|Gifts are wrapped to make a surprise.|A gift should come from the heart.
heart|hearts|object|2764 1F499 1F49A|valentines/heart(_highlight|_left|_roberto|_jon|\.).*|glows|Hearts stand for love.|A heart is often drawn on a card.
house|houses|object|1F3E0 1F3E1|homes/.*|stands|Houses keep us warm and dry.|A house needs a strong roof.
book|books|object|1F4D5 1F4D7 1F4D8 1F4D6|books/.*book.*|lies|Books can take you to faraway places.|A good book is hard to put down.
phone|phones|object|260E 1F4DE|telephone/(phone|telephone_receiver|red_telephone|phone_sergio).*|rings|Phones let people talk over long distances.|A phone used to hang on a wire.
bulb|bulbs|object|1F4A1|bulb/.*|glows|Bulbs turn electricity into light.|A bulb gets warm when it glows.
clock|clocks|object|23F0 1F570|clocks/.*clock.*|ticks|Clocks show the hours and the minutes.|A clock helps us to be on time.
hat|hats|object|1F3A9 1F452|hats/.*(hat|fedora).*|lies|Hats protect the head from sun and rain.|A hat can make anybody look important.
shoe|shoes|object|1F45F 1F45E|clothing/(tennis_shoe_|tennis_shoes|hiking).*|lies|Shoes protect our feet.|A shoe that fits well makes walking easy.
crown|crowns|object|1F451|hats/.*crown.*|shines|Crowns are worn by kings and queens.|A crown is often made of gold.
"""


def _parse(line: str) -> Concept:
    # the pattern may itself hold bars: the fields before and after it are counted from the ends
    head, remarks = line.split("|"), line.rsplit("|", 2)[1:]
    clips = "|".join(head[4:-3])
    return Concept(
        head[0], head[1], head[2], tuple(int(code, 16) for code in head[3].split()), clips, head[-3],
        (remarks[0], remarks[1]),
    )  # fmt: skip


CONCEPTS: tuple[Concept, ...] = tuple(_parse(line) for line in _TABLE.strip().splitlines())
BY_NAME: dict[str, Concept] = {concept.name: concept for concept in CONCEPTS}
