"""Sizes and counts a client may ask for, in one place; what a key or a tenant may use is the control plane's business."""

MAX_UPLOAD_BYTES = 20_000_000  # each of image and depth, as sent
MAX_FORM_BYTES = 2 * MAX_UPLOAD_BYTES + 100_000  # a whole multipart request
MAX_JSON_BYTES = 2_000_000  # 2,000 poses as text, with room
MAX_IMAGE_PIXELS = 50_000_000  # 150 MB decoded; refused from the header, before decoding
MIN_IMAGE_SIDE = 32
MIN_FOV_DEG, MAX_FOV_DEG, DEFAULT_FOV_DEG = 5.0, 170.0, 60.0
MAX_POSES = 2_000  # per generation
MAX_ACTIONS = 200  # per generation
MAX_PAGE = 200  # items of one answer
DEFAULT_PAGE = 50
MAX_WAIT_S = 30.0  # a long poll
MAX_STREAM_MESSAGE_BYTES = 1_000_000  # one WebSocket message from a client
MAX_STREAM_AHEAD = 64  # stream poses that wait for their frame; more makes the sender wait
MAX_SEEN_CHARS = 120  # of a refused value, repeated in the answer
