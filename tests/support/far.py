"""Serves an empty directory through FUSE under a name of one's choice, in place of what lies on another machine."""
import ctypes, os, struct, sys

kind, place = sys.argv[1:]
device = os.open("/dev/fuse", os.O_RDWR)
libc = ctypes.CDLL(None, use_errno=True)
options = f"fd={device},rootmode=40700,user_id={os.getuid()},group_id={os.getgid()}"
if libc.mount(b"ann@far:/srv", place.encode(), kind.encode(), 6, options.encode()):
    sys.exit(os.strerror(ctypes.get_errno()))
if os.fork():
    os._exit(0)
os.setsid()
os.chdir("/")
# Out of the namespace, whose end is the end of the mount, and that the end of this.
if libc.unshare(0x20000) or libc.umount2(place.encode(), 2):
    sys.exit(os.strerror(ctypes.get_errno()))
INIT, GETATTR, STATFS, LOOKUP, FORGET = 26, 3, 17, 1, 2
ENOENT, ENOSYS = 2, 38
attributes = struct.pack("<6Q3I7I", 1, 0, 0, 0, 0, 0, 0, 0, 0, 0o40700, 2, os.getuid(), os.getgid(), 0, 4096, 0)
answers = {
    INIT: struct.pack("<4I2H2I2H8I", 7, 31, 65536, 0, 0, 0, 65536, 1, 0, 0, *[0] * 8),
    GETATTR: struct.pack("<QII", 1, 0, 0) + attributes,
    STATFS: struct.pack("<5Q10I", 1000, 1000, 1000, 10, 10, 4096, 255, 4096, *[0] * 7),
}
while True:
    try:
        request = os.read(device, 1 << 20)
    except OSError:
        break
    _, operation, unique = struct.unpack_from("<IIQ", request)
    if operation != FORGET:
        body = answers.get(operation, b"")
        error = 0 if body else -ENOENT if operation == LOOKUP else -ENOSYS
        os.write(device, struct.pack("<IiQ", 16 + len(body), error, unique) + body)
