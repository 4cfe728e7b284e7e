"""The search page: the report's templates, one script, and nothing fetched from anywhere else."""

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files

from markupsafe import Markup

from eval.report.markup import EMPTY, Section, figure, grid, image, joined, note, page
from eval.report.media import Source
from mm.serve.engine import MATCH
from mm.serve.gallery import Found, Gallery
from mm.serve.inputs import Refused

SCRIPT = (files("mm.serve") / "page.js").read_text()
HASH = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
POLICY = (
    f"default-src 'none'; script-src 'sha256-{HASH}'; style-src 'unsafe-inline'; connect-src 'self';"
    " img-src 'self' data: blob:; media-src blob:; base-uri 'none'; form-action 'none'"
)
"""A browser runs this script alone, and asks this server alone."""
LOOK = """
#query { display: flex; flex-wrap: wrap; gap: .6rem; align-items: center; margin: 0 }
#query input[type=search] { flex: 1 1 14rem; min-width: 0 }
#query input, #query button, .hit-card button { font: inherit; color: inherit; background: var(--bg);
  border: 1px solid var(--line); border-radius: 6px; padding: .45rem .7rem; max-width: 100% }
#query button, .hit-card button { cursor: pointer; background: var(--panel) }
#query fieldset { border: 0; padding: 0; margin: 0; display: flex; flex-wrap: wrap; gap: .2rem 1rem }
#drop { border: 2px dashed var(--line); border-radius: 8px; padding: 1rem; margin: .8rem 0; color: var(--muted) }
#drop.over { border-color: var(--accent); color: var(--fg) }
#drop img, #drop audio { display: block; max-width: 100%; max-height: 200px; margin-top: .6rem }
.hit-card img { width: 100%; height: auto } .hit-card button { font-size: .85rem; padding: .15rem .5rem }
#results ol { list-style: none; padding: 0; margin: 0 }
#results .thumbs { grid-template-columns: repeat(auto-fill, minmax(min(160px, 100%), 1fr)); align-items: start }
"""


def search_page(name: str, kinds: Sequence[str], gallery: Gallery | None) -> str:
    """The page of a server.

    Args:
        name: of the model.
        kinds: that its engines compute.
        gallery: that is searched; None without an index.
    """
    lead = Markup("<style>{}</style>").format(Markup(LOOK))
    if gallery is None:
        nothing = note("There is no index: start the server with --index DIR, and --images FOLDER to build one.")
        return page(f"Search with {name}", lead, [Section("search", "Search", nothing)], POLICY)
    described = f"{len(gallery):,} images, searched by {name}"
    sections = [
        Section("search", "Search", _form(kinds), described),
        Section(
            "results", "Results", Markup('<p id="status" role="status">{}</p><div id="found"></div>').format(EMPTY)
        ),
    ]
    script = Markup("<script>{}</script>\n").format(Markup(SCRIPT))
    return page(f"Search with {name}", lead, sections, POLICY, script)


def _form(kinds: Sequence[str]) -> Markup:
    """What is searched for: a text that is typed, or a file that is dropped or chosen."""
    parts = []
    if "text" in kinds:
        parts.append(
            Markup(
                '<form id="query" role="search"><input type="search" id="text" aria-label="text to search for"'
                ' placeholder="a red circle" autocomplete="off" autofocus>'
                "<button>Search</button>{}</form>"
            ).format(_stages() if MATCH in kinds else EMPTY)
        )
    files_taken = [kind for kind in ("image", "audio") if kind in kinds]
    if files_taken:
        accepted = ",".join(f"{kind}/*" for kind in files_taken)
        words = " or ".join({"image": "an image", "audio": "a sound"}[kind] for kind in files_taken)
        parts.append(
            Markup(
                '<div id="drop"><label>Drop {0} here, or choose {0}: <input type="file" id="file" accept="{1}"></label>'
                '<div id="given"></div></div>'
            ).format(words, accepted)
        )
    return joined(parts)


def _stages() -> Markup:
    radios = [
        Markup('<label><input type="radio" name="stage" value="{}"{}> {}</label>').format(value, checked, words)
        for value, checked, words in (
            ("embedding", Markup(" checked"), "by embedding"),
            ("reranked", EMPTY, "re-ranked by the joint reading"),
        )
    ]
    return Markup('<fieldset aria-label="stage">{}</fieldset>').format(joined(radios))


def hits_html(found: Sequence[Found], gallery: Gallery | None, stage: str) -> str:
    """What a search found, best first: each image whole, with its score and caption."""
    assert gallery is not None  # something was found in it
    cards = [_hit(each, rank, gallery, stage) for rank, each in enumerate(found, 1)]
    return str(grid(cards, "thumbs"))


def _hit(each: Found, rank: int, gallery: Gallery, stage: str) -> Markup:
    unit = "log-odds" if stage == "reranked" else "cosine"
    words = each.caption or f"image {each.number}"
    try:
        shown = gallery.shown(each.number)
    except Refused as error:
        picture = note(error.message)
    else:
        picture = image(Source(f"/images/{each.number}", shown.width, shown.height), words)
    caption = Markup('{}. {} <small>{} {:.3f}</small> <button type="button" data-like="{}">similar</button>').format(
        rank, words, unit, each.score, each.number
    )
    return Markup('<div class="hit-card" data-image="{}">{}</div>').format(each.number, figure(picture, caption))
