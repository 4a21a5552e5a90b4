"""Ask a running `shirg serve` about an image, with the official client of OpenAI's API.

    shirg serve --port 8000 &
    python scripts/examples/chat_client.py hub_card/examples/grid.png "What is in cell 5?"

The client is a general one: any program that speaks that API can ask.
"""

import argparse
import base64
import mimetypes
from pathlib import Path

from openai import OpenAI, OpenAIError


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=Path)
    parser.add_argument("question")
    parser.add_argument("--server", default="http://127.0.0.1:8000/v1")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Print the answer as it comes."""
    kind = mimetypes.guess_type(args.image)[0]
    if kind is None or not args.image.is_file():
        raise SystemExit(f"{args.image} is no file whose name says what image it is, such as photo.png.")
    client = OpenAI(base_url=args.server, api_key="none")
    url = f"data:{kind};base64,{base64.b64encode(args.image.read_bytes()).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": args.question}]
    try:
        model = next(iter(client.models.list())).id
        chunks = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": content}], stream=True, temperature=0
        )
        for chunk in chunks:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
    except OpenAIError as error:
        raise SystemExit(f"{args.server}: {error}") from None
    print()


if __name__ == "__main__":
    main(parse_args())
