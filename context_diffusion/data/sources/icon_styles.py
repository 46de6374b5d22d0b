"""The icon sets: which package draws each, under which licence, and which of its variants are styles of their own."""

from __future__ import annotations

from dataclasses import dataclass

from .packages import Package


@dataclass(frozen=True)
class IconSet:
    """The icons of one package.

    Attributes:
        name: our name of the set; its styles begin with it.
        package: the package that carries it.
        words: how captions call every style of it.
        variants: the end of an icon's name -> what the style is called in captions; the end "" is that of the names
            with none of the others. Variants draw the same icons in the same layout.
        sizes: ends of names that are sizes of one drawing, the best first; empty where there are none.
        heldout: whether training never sees it. Such a set has no words.
    """

    name: str
    package: Package
    words: str
    variants: dict[str, str]
    sizes: tuple[str, ...] = ()
    heldout: bool = False


def _package(name: str, version: str, sha512: str, licence: str, attribution: str) -> Package:
    return Package(f"@iconify-json/{name}", version, sha512, licence, attribution)


ICON_SETS = (
    IconSet(
        "fluent-color",
        _package(
            "fluent-color",
            "1.2.21",
            "VETjGx7BMpVsCR3HV5g5t6oBGZ92XKzIRClS5xUvDn1YHAkQTF9OyF/aFdtxYOC8JROoI1SNO/Ql6jZeK7mroA==",
            "MIT",
            "Fluent UI System Icons (color), Microsoft Corporation",
        ),
        "gradient color icon",
        {"": ""},
        ("48", "32", "28", "24", "20", "16"),
    ),
    IconSet(
        "flat-color",
        _package(
            "flat-color-icons",
            "1.2.3",
            "KcmJ7CY0TKFv5GuBjiS4/v++jEcNXna1jfY+yq014tnw/MN/jMI2oYpoMHGuIpYtUqDu7eove+WySnOYO8nS3w==",
            "MIT",
            "Flat Color Icons, Icons8",
        ),
        "flat color icon",
        {"": ""},
    ),
    IconSet(
        "streamline",
        _package(
            "streamline-color",
            "1.2.2",
            "+ypc4kzeKTFbHVM2uNWFqt1iR7E4XeMTI3Wa3LcmeHLPjyk6u6e9NJqqOHUU02rpA8GaN80XHySXzX+4DuZbzA==",
            "CC-BY-4.0",
            "Streamline color icons, streamlinehq.com",
        ),
        "two blues icon",
        {"": "outlined", "flat": "flat"},
    ),
    IconSet(
        "streamline-flex",
        _package(
            "streamline-flex-color",
            "1.2.2",
            "EphxHZHzxcR2B8AU7skOnq27cuOoZDzn69EzLysRkN+Nla7tyqF0eacsFCk70t2T9BhT3LBy9GgGeY3+Db2KPQ==",
            "CC-BY-4.0",
            "Streamline Flex color icons, streamlinehq.com",
        ),
        "two blues round icon",
        {"": "outlined", "flat": "flat"},
    ),
    IconSet(
        "streamline-plump",
        _package(
            "streamline-plump-color",
            "1.2.2",
            "nMLbsfwKt/IJCUDpndY7sW5aZsFUOhQGS2Jdeap+CAfbQMDIzsyEHqe8m3u65wM23q1jBlWoblE7oUXukcvTvw==",
            "CC-BY-4.0",
            "Streamline Plump color icons, streamlinehq.com",
        ),
        "two blues plump icon",
        {"": "outlined", "flat": "flat"},
    ),
    IconSet(
        "streamline-ultimate",
        _package(
            "streamline-ultimate-color",
            "1.2.2",
            "NAbD3xLtg3069865B5CLUulp/eowPNCiDfJBxVAmA+LKLPpxU7EIEJ2+mSfWriPd+ahORWyqjRnoPVkTJopEgg==",
            "CC-BY-4.0",
            "Streamline Ultimate color icons, streamlinehq.com",
        ),
        "outlined color icon",
        {"": ""},
    ),
    IconSet(
        "streamline-kameleon",
        _package(
            "streamline-kameleon-color",
            "1.2.2",
            "6vFS3ILSmy3w6R1v2nVolNFf9pLuUihOUqyUNVXp0HliWIR6RpJIsWue0Fc6MVri7wde+SWzMJeLAXWU3zE43g==",
            "CC-BY-4.0",
            "Streamline Kameleon color icons, streamlinehq.com",
        ),
        "icon in a disc",
        {"": "colorful", "duo": "blue"},
    ),
    IconSet(
        "streamline-freehand",
        _package(
            "streamline-freehand-color",
            "1.2.2",
            "ql3aN0gPHIClR74SkG89oykRB1LxmwhIWYDM425bVsoZRNhl2uHtNMmIs6CADrCcyhdNQwtieaj49BIT0Idu5A==",
            "CC-BY-4.0",
            "Streamline Freehand color icons, streamlinehq.com",
        ),
        "hand-drawn icon",
        {"": ""},
    ),
    IconSet(
        "streamline-cyber",
        _package(
            "streamline-cyber-color",
            "1.2.2",
            "Q7Lx72uUlMGY0+nKqxAal6N3aVRRKipH/R3BEGNLuxG3A2t0N6Mh8sYX+6puJaDPcj37pEFgjM+G3n+FwM7QYw==",
            "CC-BY-4.0",
            "Streamline Cyber color icons, streamlinehq.com",
        ),
        "angular line icon",
        {"": ""},
    ),
    IconSet(
        "streamline-stickies",
        _package(
            "streamline-stickies-color",
            "1.2.2",
            "OisPU3Q/VMAHTtJbzRa2lmK8UN+n7D5US0txeL488yrEmoALvRerzIOS8zTNiojNDghJ2/6cp0eh5IK4ezukpA==",
            "CC-BY-4.0",
            "Streamline Stickies color icons, streamlinehq.com",
        ),
        "sticker icon",
        {"": "colorful", "duo": "blue"},
    ),
    IconSet(
        "meteocons",
        _package(
            "meteocons",
            "1.2.4",
            "E7YV02ql5WmJgAOpXU/hoF9Mdshq73KjwR6fBxZ5SrqMJghMa3CIcRG6NQGwP4I1uBOhIjOFlAikYoPAKuT56A==",
            "MIT",
            "Meteocons, Bas Milius",
        ),
        "weather icon",
        {"": "line", "fill": "filled"},
    ),
    IconSet(
        "phosphor",
        _package(
            "ph",
            "1.2.2",
            "PgkEZNtqa8hBGjHXQa4pMwZa93hmfu8FUSjs/nv4oUU6yLsgv+gh9nu28Kqi8Fz9CCVu4hj1MZs9/60J57IzFw==",
            "MIT",
            "Phosphor Icons, phosphoricons.com",
        ),
        "icon",
        {
            "thin": "thin line",
            "light": "light line",
            "": "line",
            "bold": "bold line",
            "fill": "black filled",
            "duotone": "black and grey line",
        },
    ),
    IconSet(
        "solar",
        _package(
            "solar",
            "1.2.13",
            "/ZWb6xRib6pzxD/qTkKWYhuzSU2yu0bY+EN0spgtz1NM3d5f4eYueQZpL3PfCdsg5uVfm4Ldtt3cAyQL+YI8/Q==",
            "CC-BY-4.0",
            "Solar Icons, 480 Design",
        ),
        "rounded icon",
        {
            "broken": "broken line",
            "line-duotone": "black and grey line",
            "linear": "line",
            "bold": "black filled",
            "bold-duotone": "black and grey filled",
        },
    ),
    IconSet(
        "mingcute",
        _package(
            "mingcute",
            "1.2.8",
            "J8VXpRwTpx5yzOzyhx3T4IXnfXIKTWFl3rZ9okcW4c+NMMuwkLvdmM4rkjB83tnYIhg5+kkeMpmw8tvSnxd4rQ==",
            "Apache-2.0",
            "MingCute Icons, MingCute Design",
        ),
        "black icon",
        {"line": "line", "fill": "filled"},
    ),
    IconSet(
        "icon-park",
        _package(
            "icon-park",
            "1.2.4",
            "S8fVl49LG/M9hvwb7ruFGInK21AHMv3IJehOJRJgXPLE39OOCP3wbfTWjro/XzsjxRwdvX/lYdGetFOZI0TaJQ==",
            "Apache-2.0",
            "IconPark, ByteDance",
        ),
        "black and blue icon",
        {"": ""},
    ),
    # Never trained on: two sets of emoji, pastel lines, and logos on tiles.
    IconSet(
        "fxemoji",
        _package(
            "fxemoji",
            "1.2.2",
            "UAasRaxzFUKfIGSmLwnoarsssA4LX0VLLuEmplIqM6ZNQqIQRtav8tZ4H1neTlBreXuMQyAifr5jP4kn78DpiQ==",
            "Apache-2.0",
            "Firefox OS Emoji, Mozilla",
        ),
        "",
        {"": ""},
        heldout=True,
    ),
    IconSet(
        "streamline-emojis",
        _package(
            "streamline-emojis",
            "1.2.4",
            "iNr9T9XuZVTyQPJO8ZlLxBzPkpi7qMl+z1l0C31vpEMqhPMelth3n7CeWQYtixdetDPdI81yeG4ROqjWpYJE6A==",
            "CC-BY-4.0",
            "Streamline Emojis, streamlinehq.com",
        ),
        "",
        {"": ""},
        heldout=True,
    ),
    IconSet(
        "catppuccin",
        _package(
            "catppuccin",
            "1.2.17",
            "l1pFOADEUlw+j7V+yfFzBowdE4deeMuI4amqfKaN+7uTI9B0Ho24C86DitQk5zb62NkEM9poOyfuG7WS2bw6jg==",
            "MIT",
            "Catppuccin icons, Catppuccin",
        ),
        "",
        {"": ""},
        heldout=True,
    ),
    IconSet(
        "skill-icons",
        _package(
            "skill-icons",
            "1.2.4",
            "S6iRKHGlGCb/zfx3Isv1TBe5PunbDE5FEwJcaXji60+yRZMrcFFtYEI1xivKqaGKXyVZ508yjGDItsehQdJmSg==",
            "MIT",
            "Skill Icons, tandpfun",
        ),
        "",
        {"": ""},
        heldout=True,
    ),
)
