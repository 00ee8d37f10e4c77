"""Boxes of objects in images: read from a table, from Pascal VOC's XML or from COCO's JSON, and found by a detector."""
