"""Opens a page in a headless Chromium and says what it looks like from inside."""

import html
import json
import re
import shutil
import subprocess

NAMES = ("chromium", "chromium-browser", "google-chrome")
PROGRAM = next((path for path in map(shutil.which, NAMES) if path), None)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--virtual-time-budget=5000",
    "--window-size=1400,1000",
    "--dump-dom",
]
# The page lies in a frame of the width asked for, since a browser's window has a least width
# of its own; untouched, with its policy against scripts. The one script is outside.
FRAME = """<!DOCTYPE html><meta charset="utf-8"><link rel="icon" href="data:,">
<body style="margin:0"><iframe style="border:0;width:{width}px;height:900px" srcdoc="{page}">
</iframe><pre id="findings"></pre><script>
addEventListener("load", () => {{
  const page = document.querySelector("iframe").contentDocument;
  const root = page.documentElement;
  for (const box of page.querySelectorAll("details")) box.open = {opened};
  const images = [...page.images].map((image) => ({{
    pixels: image.complete ? image.naturalWidth : 0,
    right: image.getBoundingClientRect().right,
  }}));
  const wide = [...page.querySelectorAll("main *")].filter((element) =>
    element.getBoundingClientRect().right > root.clientWidth + 1 && !element.closest(".scroll"));
  document.getElementById("findings").textContent = JSON.stringify({{
    images, window: page.defaultView.innerWidth, title: page.title,
    page: Math.max(root.scrollWidth, page.body.scrollWidth),
    wide: wide.map((element) => element.outerHTML.slice(0, 80)),
    cut: [...page.querySelectorAll(".scroll")].filter((box) =>
      box.scrollWidth > box.clientWidth + 1).map((box) => box.querySelector("caption").innerText),
    columns: getComputedStyle(page.querySelector(".three") || root).gridTemplateColumns,
  }});
}});
</script>"""


def look(page, width, folder, *, opened=True):
    """What a page of HTML looks like in a window of this width, and what the console says."""
    text = html.escape(page.read_text())
    frame = folder / f"frame-{width}.html"
    frame.write_text(FRAME.format(width=width, page=text, opened=str(opened).lower()))
    profile = folder / f"profile-{width}"
    done = subprocess.run(
        [PROGRAM, *FLAGS, f"--user-data-dir={profile}", frame.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = re.search('<pre id="findings">(.*?)</pre>', done.stdout, re.DOTALL)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(html.unescape(found[1])), console
