"""Code that takes memory, one way each. It prints `held N`, the MiB that it has taken by then, as it goes.

`TARGET` MiB is what each tries to get. `PRELUDE` comes first.
"""

TARGET = 1024

PRELUDE = f"""
import ctypes, mmap, os, socket, struct, sys, time
TARGET = {TARGET}
libc = ctypes.CDLL(None, use_errno=True)
for name in ("mmap", "shmat"):
    getattr(libc, name).restype = ctypes.c_void_p
total = 0
def took(size):
    global total
    before, total = total, total + size
    if total >> 24 != before >> 24:
        print("held", total >> 20, flush=True)
    return total < TARGET << 20
def shared(size, fd=-1, flags=0x21):
    at = libc.mmap(None, ctypes.c_size_t(size), 3, flags, fd, ctypes.c_long(0))
    if at == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "mmap")
    ctypes.memset(at, 1, size)
    return at
def shrink(at, size):
    libc.munmap(ctypes.c_void_p(at + 4096), ctypes.c_size_t(size - 4096))
def grab(size):
    # as took, in a child of in_children
    global total
    total += size
    return total < 128 * MIB
def in_children(fill):
    # one child after another takes what it can until it is refused, and keeps it
    size = 1
    while took(size):
        read, write = os.pipe()
        if os.fork() == 0:
            globals()["total"] = 0
            os.closerange(write + 1, 5000)
            try: fill()
            except OSError: pass
            os.write(write, str(total).encode())
            while True: time.sleep(1)
        os.close(write)
        size = int(os.read(read, 20) or 0); os.close(read)
def without_main_thread(step):
    # a child whose main thread ends at once, while another one takes what it can, step by step
    import threading
    read, write = os.pipe()
    def fill():
        time.sleep(0.1)
        while True: os.write(write, b"%d\\n" % step())
    if os.fork() == 0:
        threading.Thread(target=fill).start()
        libc.pthread_exit(None)
    os.close(write)
    for line in os.fdopen(read):
        if not took(int(line)): break
MIB = 2**20
kept = []
"""

ATTACKS = {
    "private pages": "while took(16 * MIB): kept.append(bytearray(16 * MIB))",
    "many processes": """
while took(24 * MIB):
    if os.fork() == 0:
        held = bytearray(24 * MIB)
        while True: time.sleep(1)
    time.sleep(0.005)
""",
    "fork and write": """
block = bytearray(96 * MIB)
while took(96 * MIB):
    if os.fork() == 0:
        for at in range(0, len(block), 4096): block[at] = 1
        while True: time.sleep(1)
    time.sleep(0.1)
""",
    "memfd": """
while took(16 * MIB):
    fd = os.memfd_create("x")
    os.write(fd, bytes(16 * MIB)); kept.append(fd)
""",
    "memfd in flight": """
a, b = socket.socketpair()
while took(16 * MIB):
    fd = os.memfd_create("x")
    os.write(fd, bytes(16 * MIB)); socket.send_fds(a, [b"x"], [fd]); os.close(fd)
""",
    "shared mappings": "while took(16 * MIB): kept.append(shared(16 * MIB))",
    "shared mappings, given up but one page": """
while took(16 * MIB): at = shared(16 * MIB); shrink(at, 16 * MIB)
""",
    "shared mappings, advised away": """
while took(16 * MIB):
    at = shared(16 * MIB)
    libc.madvise(ctypes.c_void_p(at), ctypes.c_size_t(16 * MIB), 4)
""",
    "shared mappings of a process that nobody may look into": """
libc.prctl(4, 0, 0, 0, 0)
while took(16 * MIB): at = shared(16 * MIB); shrink(at, 16 * MIB)
""",
    "small shared mappings": """
while took(MIB // 2): at = shared(MIB // 2); shrink(at, MIB // 2)
""",
    "/dev/zero": """
fd = os.open("/dev/zero", os.O_RDWR)
while took(16 * MIB): at = shared(16 * MIB, fd, 1); shrink(at, 16 * MIB)
""",
    "System V memory": """
while took(16 * MIB):
    at = libc.shmat(libc.shmget(0, ctypes.c_size_t(16 * MIB), 0o1600), None, 0)
    if at == ctypes.c_void_p(-1).value: raise OSError(ctypes.get_errno(), "shmat")
    ctypes.memset(at, 1, 16 * MIB); libc.shmdt(ctypes.c_void_p(at))
""",
    "System V semaphores": """
while took(32000 * 64):
    if libc.semget(0, 32000, 0o1600) < 0: raise OSError(ctypes.get_errno(), "semget")
""",
    "System V messages": """
while True:
    queue = libc.msgget(0, 0o1600)
    if queue < 0: raise OSError(ctypes.get_errno(), "msgget")
    while libc.msgsnd(queue, struct.pack("l1000s", 1, b"x"), ctypes.c_size_t(1000), 0o4000) == 0: took(1064)
""",
    "POSIX shared memory": """
while took(16 * MIB):
    with open(f"/dev/shm/{total}", "wb") as file: file.write(bytes(16 * MIB))
""",
    "files in every memory file system": """
for place in ("/tmp", "/workspace", "/home/sandbox", "/dev/shm", "/run/llmsafespace"):
    try:
        for _ in range(TARGET // 16):
            with open(f"{place}/{total}", "wb") as file: file.write(bytes(16 * MIB))
            took(16 * MIB)
    except OSError as error: print(place, error)
""",
    "empty files": """
number = 0
while took(1024):
    os.close(os.open(f"/tmp/{number}", os.O_CREAT | os.O_WRONLY)); number += 1
""",
    "huge pages": """
while took(16 * MIB): kept.append(shared(16 * MIB, flags=0x40022))
""",
    "huge System V pages": """
at = libc.shmat(libc.shmget(0, ctypes.c_size_t(16 * MIB), 0o5600), None, 0)
if at == ctypes.c_void_p(-1).value: raise OSError(ctypes.get_errno(), "shmat")
""",
    "pipes": """
def fill():
    while True:
        kept.append(os.pipe()); os.set_blocking(kept[-1][1], False)
        try:
            while grab(os.write(kept[-1][1], bytes(65536))): pass
        except BlockingIOError: pass
in_children(fill)
""",
    "pipes of processes that nobody may look into": """
def fill():
    libc.prctl(4, 0, 0, 0, 0)
    while True:
        kept.append(os.pipe()); os.set_blocking(kept[-1][1], False)
        try:
            while grab(os.write(kept[-1][1], bytes(65536))): pass
        except BlockingIOError: pass
in_children(fill)
""",
    "large pipes": """
import fcntl
while True:
    a, b = os.pipe(); os.set_blocking(b, False)
    fcntl.fcntl(b, 1031, MIB)
    try:
        while took(os.write(b, bytes(MIB))): pass
    except BlockingIOError: pass
""",
    "pages lent to pipes": """
class Vector(ctypes.Structure): _fields_ = [("base", ctypes.c_void_p), ("size", ctypes.c_size_t)]
while True:
    a, b = os.pipe()
    at = shared(65536, flags=0x22)
    vector = Vector(at, 65536)
    if libc.vmsplice(b, ctypes.byref(vector), 1, 8) < 0: raise OSError(ctypes.get_errno(), "vmsplice")
    libc.munmap(ctypes.c_void_p(at), ctypes.c_size_t(65536)); took(65536)
""",
    "unix sockets": """
def fill():
    while True:
        kept.append(socket.socketpair())
        for one in kept[-1]:
            one.setblocking(False)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**23)
            try:
                while one.send(bytes(65536)): grab(65536)
            except BlockingIOError: pass
in_children(fill)
""",
    "TCP": """
server = socket.create_server(("127.0.0.1", 0), backlog=64)
while True:
    client = socket.create_connection(server.getsockname()); other, _ = server.accept()
    kept += [client, other]
    for one in (client, other):
        one.setblocking(False)
        try:
            while took(one.send(bytes(65536))): pass
        except BlockingIOError: pass
""",
    "a few TCP connections": """
server = socket.create_server(("127.0.0.1", 0), backlog=64)
def pour(one, other):
    # one way, at the pace of a reader that lets the buffers grow as far as they may
    one.setblocking(False)
    got = 0
    for _ in range(3000):
        try: got += one.send(bytes(262144))
        except BlockingIOError: pass
        if got > 2 * MIB: got -= len(other.recv(65536))
    try:
        while True: got += one.send(bytes(65536))
    except BlockingIOError: pass
    return got
while len(kept) < 100:
    client = socket.create_connection(server.getsockname()); other, _ = server.accept()
    kept += [client, other]
    if not (took(pour(client, other)) and took(pour(other, client))): break
""",
    "page tables": """
size = 1 << 39
at = libc.mmap(None, ctypes.c_size_t(size), 1, 0x4022, -1, ctypes.c_long(0))
assert at != ctypes.c_void_p(-1).value
for offset in range(0, size, 1 << 21):
    ctypes.c_char.from_address(at + offset).value
    if not took(4096): break
""",
    "memory areas": """
size = 60_000 * 4096
at = libc.mmap(None, ctypes.c_size_t(size), 0, 0x4022, -1, ctypes.c_long(0))
for offset in range(0, size, 8192):
    libc.mprotect(ctypes.c_void_p(at + offset), ctypes.c_size_t(4096), 1)
while took(60_000 * 200):
    if os.fork() == 0:
        while True: time.sleep(1)
""",
    "terminals": """
def fill():
    while grab(70_000): kept.append(os.openpty())
in_children(fill)
""",
    "private pages after the main thread has ended": """
def step(): kept.append(bytearray(16 * MIB)); return 16 * MIB
without_main_thread(step)
""",
    "shared mappings after the main thread has ended": """
def step(): shrink(shared(16 * MIB), 16 * MIB); return 16 * MIB
without_main_thread(step)
""",
    "event descriptors": """
def fill():
    while grab(1024): os.eventfd(0)
in_children(fill)
""",
}
