"""The page of `shirg demo`, as a Space runs it."""

import os

from shirg_scripts.demo import build_page, parse_args

model = os.environ.get("SHIRG_MODEL")
page = build_page(parse_args(["--model", model] if model else []))

if __name__ == "__main__":
    page.launch(server_name="0.0.0.0", show_error=True)
