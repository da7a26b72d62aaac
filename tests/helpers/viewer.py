"""What a page of the viewer holds, read as its script reads it."""

import io
import json
import re
from base64 import b64decode

import numpy as np
import torch
from PIL import Image


def data_of(html):
    """The JSON of a page."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[1])


def pixels_in(html):
    """(B, F, 3, C, H, W): the cells of its sprite sheets."""
    data = data_of(html)
    images = [[cells(sheet, data) for sheet in image["sheets"]] for image in data["images"]]
    return torch.stack([torch.stack(sheets, dim=1) for sheets in images])


def cells(url, data):
    kind, _, text = url.partition(",")
    assert kind == "data:image/png;base64"
    sheet = np.array(Image.open(io.BytesIO(b64decode(text, validate=True))))
    sheet = sheet[..., None] if sheet.ndim == 2 else sheet
    height, width, columns = data["height"], data["width"], data["columns"]
    found = []
    for frame in range(len(data["frames"])):
        y, x = frame // columns * height, frame % columns * width
        found.append(torch.from_numpy(sheet[y : y + height, x : x + width].copy()).permute(2, 0, 1))
    return torch.stack(found)
