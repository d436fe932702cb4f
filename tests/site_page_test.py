"""Pages of the documentation site in a browser: they fit phones and screens, with all pictures."""

import pathlib
import tempfile

import chromium
import pytest
from absl.testing import absltest

SITE = pathlib.Path(__file__).parents[1] / "build" / "site"
SIDEWAYS = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
MISSING = """
[...document.images].filter((image) => image.loading !== "lazy" && !image.naturalWidth)
  .map((image) => image.src)
"""


@absltest.skipIf(
    chromium.find() is None, "needs Chromium: install the chromium package of your system"
)
@absltest.skipUnless((SITE / "index.html").is_file(), "needs the site: bash launch/docs.sh")
class SiteTest(absltest.TestCase):
    @pytest.mark.slow
    def test_pages_fit_and_are_complete(self):
        profile = self.enterContext(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        page = self.enterContext(chromium.Chromium(pathlib.Path(profile)))
        gallery = sorted(SITE.glob("gallery/*.html"))
        self.assertGreater(len(gallery), 15)
        paths = [*sorted(SITE.glob("*.html")), *gallery[::6]]
        for width in (390, 1280):
            page.window(width, mobile=width < 500)
            for path in paths:
                with self.subTest(page=path.relative_to(SITE), width=width):
                    page.errors.clear()
                    page.open(path)
                    needed, there = page.evaluate(SIDEWAYS)
                    self.assertLessEqual(needed, there)
                    self.assertEqual(page.evaluate(MISSING), [])
                    self.assertGreater(page.evaluate("document.body.innerText.length"), 200)


if __name__ == "__main__":
    absltest.main()
