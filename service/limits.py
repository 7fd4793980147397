"""Sizes and counts a client may ask for that no operator needs to set; the others are in
settings.py.
"""

FORM_FILES = 3  # of one picture: itself, its depth, its mask
FORM_OVERHEAD_BYTES = 100_000  # of a multipart request, beside its files
MAX_HEAD_BYTES = 65_536  # of a request: its address and headers
MAX_NAME_CHARS = 200  # of what a gRPC call or a stream names: a session, a request, a snapshot
MAX_JSON_BYTES = 2_000_000  # the longest path as text, with room
MIN_IMAGE_SIDE = 32
PATCH_PX = 8  # of a frame, each way: what is remembered has one depth for each such square
MIN_FOV_DEG, MAX_FOV_DEG, DEFAULT_FOV_DEG = 5.0, 170.0, 60.0  # of a whole image, horizontally
MIN_FRAME_FOV_DEG = 1.0  # of what is left of it in the frame's aspect
MAX_ACTIONS = 200  # per generation
MAX_CAMERAS = 16  # of one world
MAX_PAGE = 200  # items of one answer
DEFAULT_PAGE = 50
MAX_INTEGER = 2**53  # exact in every JSON: frames, seeds, counts
MAX_WAIT_S = 20.0  # a long poll; what the frame bus waits at most
MAX_STREAM_MESSAGE_BYTES = 1_000_000  # one WebSocket message from a client
MAX_VIDEO_CACHE_BYTES = 64 << 20  # finished MP4s kept for players that ask for them in parts
MAX_HEAVY = 2  # uploads decoded and videos made at a time, up to 600 MB each (50 megapixels)
DEFAULT_POINTS, MAX_POINTS = 1_000_000, 4_000_000  # of one point cloud; 24 bytes each as GLB
MAX_HELD_POINTS = 1 << 24  # while one is read, 15 bytes each; past it a share of all is followed
MAX_CLOUD_BYTES = 4 << 30  # of the segments that are read for one
MAX_CLOUDS = 2  # made at a time
MAX_IMPORTS = 2  # read at a time, up to 1 GB each: the largest segment and what it is made of
MAX_SHARES = 256  # links to one world that are good at a time
RETURN_S = 1.0  # when a client whose gateway stops should come back
MAX_SEEN_CHARS = 120  # of a refused value, repeated in the answer
MAX_FIELD_PROBLEMS = 20  # told in one answer
MAX_FIELDS = 64  # of one object: each that is not known is a finding
