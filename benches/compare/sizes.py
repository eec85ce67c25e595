"""The sizes, the text and the number of boxes of all measurements."""

# (height, width) of the detector's input for an image of 3:4
DETECTOR_SIZE = (800, 1066)
SEGMENTER_SIDE = 1024
# segmenters whose image encoder has another input
OTHER_SIDES = {"efficientvit-sam-l0": 512}
# [CLS] cat . remote . person . [SEP]
PROMPT = "cat. remote. person."
TOKENS = [101, 4937, 1012, 6556, 1012, 2711, 1012, 102]
# (height, width) of the image that masks are made for, and the maximum number of its boxes
IMAGE_SIZE = (1280, 1920)
BOXES = 20
# for a whole request: an image of this size is resized to the detector's input above
REQUEST_SIZE = (1440, 1920)
