"""The benchmarks of the paper: which classes and how many images each of their domains has.

Classes are in the order of the labels in the authors' list files, which not all of them sort by name. The numbers of
images are those of the data as published; those of DomainNet are of its lists of training and test images (the cleaned
version of 2019).
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from gh_downstream.data.skipped import listed


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_OFFICE_31 = _names(
    """
    back_pack bike bike_helmet bookcase bottle calculator desk_chair desk_lamp desktop_computer file_cabinet
    headphones keyboard laptop_computer letter_tray mobile_phone monitor mouse mug paper_notebook pen phone
    printer projector punchers ring_binder ruler scissors speaker stapler tape_dispenser trash_can
    """
)
_OFFICE_CALTECH = _names("backpack bike calculator headphones keyboard laptop monitor mouse mug projector")
_OFFICE_HOME = _names(
    """
    Drill Exit_Sign Bottle Glasses Computer File_Cabinet Shelf Toys Sink Laptop Kettle Folder Keyboard Flipflops
    Pencil Bed Hammer ToothBrush Couch Bike Postit_Notes Mug Webcam Desk_Lamp Telephone Helmet Mouse Pen Monitor
    Mop Sneakers Notebook Backpack Alarm_Clock Push_Pin Paper_Clip Batteries Radio Fan Ruler Pan Screwdriver
    Trash_Can Printer Speaker Eraser Bucket Chair Calendar Calculator Flowers Lamp_Shade Spoon Candles Clipboards
    Scissors TV Curtains Fork Soda Table Knives Oven Refrigerator Marker
    """
)
_VISDA_2017 = _names("aeroplane bicycle bus car horse knife motorcycle person plant skateboard train truck")
_DOMAINNET = _names(
    """
    aircraft_carrier airplane alarm_clock ambulance angel animal_migration ant anvil apple arm asparagus axe
    backpack banana bandage barn baseball baseball_bat basket basketball bat bathtub beach bear beard bed bee
    belt bench bicycle binoculars bird birthday_cake blackberry blueberry book boomerang bottlecap bowtie
    bracelet brain bread bridge broccoli broom bucket bulldozer bus bush butterfly cactus cake calculator
    calendar camel camera camouflage campfire candle cannon canoe car carrot castle cat ceiling_fan cello
    cell_phone chair chandelier church circle clarinet clock cloud coffee_cup compass computer cookie cooler
    couch cow crab crayon crocodile crown cruise_ship cup diamond dishwasher diving_board dog dolphin donut door
    dragon dresser drill drums duck dumbbell ear elbow elephant envelope eraser eye eyeglasses face fan feather
    fence finger fire_hydrant fireplace firetruck fish flamingo flashlight flip_flops floor_lamp flower
    flying_saucer foot fork frog frying_pan garden garden_hose giraffe goatee golf_club grapes grass guitar
    hamburger hammer hand harp hat headphones hedgehog helicopter helmet hexagon hockey_puck hockey_stick horse
    hospital hot_air_balloon hot_dog hot_tub hourglass house house_plant hurricane ice_cream jacket jail kangaroo
    key keyboard knee knife ladder lantern laptop leaf leg light_bulb lighter lighthouse lightning line lion
    lipstick lobster lollipop mailbox map marker matches megaphone mermaid microphone microwave monkey moon
    mosquito motorbike mountain mouse moustache mouth mug mushroom nail necklace nose ocean octagon octopus onion
    oven owl paintbrush paint_can palm_tree panda pants paper_clip parachute parrot passport peanut pear peas
    pencil penguin piano pickup_truck picture_frame pig pillow pineapple pizza pliers police_car pond pool
    popsicle postcard potato power_outlet purse rabbit raccoon radio rain rainbow rake remote_control rhinoceros
    rifle river roller_coaster rollerskates sailboat sandwich saw saxophone school_bus scissors scorpion
    screwdriver sea_turtle see_saw shark sheep shoe shorts shovel sink skateboard skull skyscraper sleeping_bag
    smiley_face snail snake snorkel snowflake snowman soccer_ball sock speedboat spider spoon spreadsheet square
    squiggle squirrel stairs star steak stereo stethoscope stitches stop_sign stove strawberry streetlight
    string_bean submarine suitcase sun swan sweater swing_set sword syringe table teapot teddy-bear telephone
    television tennis_racquet tent The_Eiffel_Tower The_Great_Wall_of_China The_Mona_Lisa tiger toaster toe
    toilet tooth toothbrush toothpaste tornado tractor traffic_light train tree triangle trombone truck trumpet
    t-shirt umbrella underwear van vase violin washing_machine watermelon waterslide whale wheel windmill
    wine_bottle wine_glass wristwatch yoga zebra zigzag
    """
)


@dataclass(frozen=True)
class Benchmark:
    """One domain of a benchmark.

    Args:
        classes: Names of the classes, in the order of the labels.
        images: Number of images.
        without_images: Classes that have no image in this domain as published.
    """

    classes: tuple[str, ...]
    images: int
    without_images: tuple[str, ...] = ()


BENCHMARKS = {
    "office31/amazon": Benchmark(_OFFICE_31, 2817),
    "office31/dslr": Benchmark(_OFFICE_31, 498),
    "office31/webcam": Benchmark(_OFFICE_31, 795),
    "office-caltech/amazon": Benchmark(_OFFICE_CALTECH, 958),
    "office-caltech/dslr": Benchmark(_OFFICE_CALTECH, 157),
    "office-caltech/webcam": Benchmark(_OFFICE_CALTECH, 295),
    "office-home/Art": Benchmark(_OFFICE_HOME, 2427),
    "office-home/Clipart": Benchmark(_OFFICE_HOME, 4365),
    "office-home/Product": Benchmark(_OFFICE_HOME, 4439),
    "office-home/Real World": Benchmark(_OFFICE_HOME, 4357),
    "visda-2017/train": Benchmark(_VISDA_2017, 152397),
    "visda-2017/validation": Benchmark(_VISDA_2017, 55388),
    "domainnet/clipart_train": Benchmark(_DOMAINNET, 33525),
    "domainnet/clipart_test": Benchmark(_DOMAINNET, 14604),
    "domainnet/infograph_train": Benchmark(_DOMAINNET, 36023),
    "domainnet/infograph_test": Benchmark(_DOMAINNET, 15582),
    "domainnet/painting_train": Benchmark(_DOMAINNET, 50416, ("t-shirt",)),
    "domainnet/painting_test": Benchmark(_DOMAINNET, 21850, ("syringe",)),
    "domainnet/quickdraw_train": Benchmark(_DOMAINNET, 120750),
    "domainnet/quickdraw_test": Benchmark(_DOMAINNET, 51750),
    "domainnet/real_train": Benchmark(_DOMAINNET, 120906),
    "domainnet/real_test": Benchmark(_DOMAINNET, 52041),
    "domainnet/sketch_train": Benchmark(_DOMAINNET, 48212),
    "domainnet/sketch_test": Benchmark(_DOMAINNET, 20916),
}
"""By ``BENCHMARK/DOMAIN``."""


def check_benchmark(name: str, path: Path, classes: Collection[str], images: int) -> None:
    """Compare data, the classes that have images and the number of images, with a key of :data:`BENCHMARKS`.

    Raises:
        ValueError: The number of classes or of images differs; it says which classes are missing, or unknown.
    """
    benchmark = BENCHMARKS[name]
    expected = set(benchmark.classes) - set(benchmark.without_images)
    if (len(classes), images) == (len(expected), benchmark.images):
        return
    message = f"{path} has {len(classes)} classes with {images} images, but {name} has {len(expected)} with "
    message += str(benchmark.images)
    differing = {"missing": expected - set(classes), "not in the benchmark": set(classes) - expected}
    for what, names in differing.items():
        if names:
            message += f"; {what}: {listed(sorted(names), ', ')}"
    raise ValueError(message)
