"""Whether everybody can use a page: what can be seen of WCAG 2.2 AA without a person.

`violations` asks axe-core, which `pip install axe-playwright-python` brings; the others need nothing and see less.
"""

import pytest

LEVELS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
# What the keyboard reaches, as it is seen.
_REACHED = """[...document.querySelectorAll("a[href], button, input, textarea, summary, video, [tabindex]")].filter(
  (one) => one.tabIndex >= 0 && !one.disabled && !one.closest("[inert]") && one.checkVisibility({opacityProperty: true})
)"""


def violations(page) -> list[str]:
    """What axe-core finds against WCAG 2.2 AA: rule, element and reason. Skips the test where there is no axe-core."""
    found = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python")
    result = found.Axe().run(page, options={"runOnly": LEVELS, "resultTypes": ["violations"]})
    return [
        f"{rule['id']}: {node['target']} {node['failureSummary']}"
        for rule in result.response["violations"]
        for node in rule["nodes"]
    ]


def without_a_name(page) -> list[str]:
    """Elements with a role for the keyboard that have no name, or a key of a translation as their name."""
    session = page.context.new_cdp_session(page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    session.detach()
    found = []
    for node in nodes:
        properties = {one["name"]: one["value"].get("value") for one in node.get("properties", ())}
        name, role = node.get("name", {}).get("value", ""), node.get("role", {}).get("value", "")
        if properties.get("focusable") and role != "RootWebArea" and (not name.strip() or "common." in name):
            found.append(f"{role} {name!r}")
    return found


def too_small(page) -> list[str]:
    """Targets of less than 24 pixels (2.5.8), but for links within a sentence."""
    return page.evaluate(f"""{_REACHED}.map((one) => [one, one.getBoundingClientRect()])
      .filter(([one, box]) => !one.matches("p a") && (box.width < 24 || box.height < 24))
      .map(([one, box]) => `${{one.outerHTML.slice(0, 120)}}: ${{box.width}} x ${{box.height}}`)""")


def too_faint(page) -> list[str]:
    """Texts with less contrast than 4.5 to 1, or 3 to 1 if large (1.4.3)."""
    return page.evaluate(_FAINT)


def focus(page, most: int = 60) -> list[tuple[str, bool]]:
    """Tab, from the top until it comes round: of each stop its text, name or label, and whether focus is seen there."""
    page.evaluate("document.body.tabIndex = -1; document.body.focus(); document.body.removeAttribute('tabindex')")
    found = []
    for _ in range(most):
        page.keyboard.press("Tab")
        stop = page.evaluate(_STOP)
        if stop is None or (found and stop == found[0]):
            return found
        found.append(stop)
    return found


_STOP = """() => {
  const one = document.activeElement;
  if (!one || one === document.body) return null;
  const style = getComputedStyle(one);
  const label = one.labels?.[0]?.innerText || one.innerText || one.id || one.tagName;
  const seen = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
  return [(one.getAttribute("aria-label") || label).trim(), seen];
}"""

_FAINT = """() => {
  const channels = (color) => color.match(/[\\d.]+/g).map(Number);
  const linear = (x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
  const luminance = (color) => {
    const [r, g, b] = channels(color).map((x) => linear(x / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (one) => {
    for (let at = one; at; at = at.parentElement) {
      const color = getComputedStyle(at).backgroundColor;
      if ((channels(color)[3] ?? 1) === 1) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const found = [];
  for (const one of document.querySelectorAll("body *")) {
    const text = [...one.childNodes].filter((x) => x.nodeType === 3).map((x) => x.textContent.trim()).join("");
    const off = one.closest(":disabled, [aria-hidden=true], [inert], svg, video, .controls");
    if (!text || off || !one.checkVisibility({opacityProperty: true, visibilityProperty: true})) continue;
    const style = getComputedStyle(one);
    const pair = [luminance(style.color), luminance(behind(one))].sort((a, b) => b - a);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    const contrast = (pair[0] + 0.05) / (pair[1] + 0.05);
    if (contrast < (large ? 3 : 4.5)) found.push(`${text.slice(0, 60)}: ${contrast.toFixed(2)}`);
  }
  return found;
}"""
