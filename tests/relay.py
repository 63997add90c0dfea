"""A TCP relay that is as bad as its seed says, to stand between peers of a test (relay.Relay).

Delay with jitter, stalls as a lost segment makes them, partitions (nothing passes, nothing is closed),
resets, half-closed connections, and bytes cut off anywhere. Order within a connection is kept, as TCP
does: what a link above sees is time, silence and broken connections, never other bytes."""
import contextlib
import os
import random
import selectors
import socket
import struct
import sys
import threading
import time

READ_BYTES = 65536
QUEUE_BYTES = 4 << 20  # under way each way; more is not read


def is_port_of(port, pid):
    """Whether a process has a TCP socket (IPv4) with that port."""
    with open('/proc/%d/net/tcp' % pid) as f:
        rows = [line.split() for line in f][1:]
    inodes = {'socket:[%s]' % row[9] for row in rows if int(row[1].rpartition(':')[2], 16) == port}
    folder = '/proc/%d/fd' % pid
    for fd in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(os.path.join(folder, fd)) in inodes:
                return True
    return False


class Way:
    """Bytes from one socket to another, each piece due at its time."""

    def __init__(self, source, sink, delay):
        self.source, self.sink, self.delay = source, sink, delay
        self.pieces = []  # (due, bytes), in order; b'' is the end
        self.n_queued = 0
        self.is_ended = False
        self.last_due = 0.0


class Relay:
    """Listens on `port` of `host`, connects to `target` (127.0.0.1) for each peer; runs until close().

    delay, jitter in seconds, one way; stall: (chance a piece, seconds); cut: chance a piece that
    the connection breaks within it. delay may be a function of the peer's port, None to hang up."""

    def __init__(self, port, target, seed=0, delay=0.0, jitter=0.0, stall=(0.0, 0.0), cut=0.0, host='127.0.0.1'):
        self.target, self.delay, self.jitter, self.stall, self.cut = target, delay, jitter, stall, cut
        self.random = random.Random(seed)
        self.n_bytes = self.n_connections = self.n_cut = 0
        self.listener = socket.create_server((host, port))
        self.listener.setblocking(False)
        self.wake_read, self.wake_write = socket.socketpair()
        self.selector = selectors.SelectSelector()  # the others round waits up to whole ms
        self.selector.register(self.listener, selectors.EVENT_READ, None)
        self.selector.register(self.wake_read, selectors.EVENT_READ, None)
        self.ways = {}  # source socket -> Way
        self.until = 0.0  # partitioned
        self.orders = []
        self.lock = threading.Lock()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.is_open = True
        self.thread.start()

    def order(self, what, *args):
        """'partition' SECONDS, 'reset', 'half_close': done by the relay's thread."""
        with self.lock:
            self.orders.append((what, *args))
        with contextlib.suppress(OSError):  # it woke by itself, and has closed already
            self.wake_write.send(b'x')

    def close(self):
        self.order('close')
        self.thread.join()

    # -- the thread ------------------------------------------------------------------------------

    def _run(self):
        while self.is_open:
            for key, _ in self.selector.select(self._wait()):
                if key.fileobj is self.listener:
                    self._accept()
                elif key.fileobj is self.wake_read:
                    self.wake_read.recv(4096)
                else:
                    self._read(self.ways.get(key.fileobj))
            self._obey()
            self._send()
        for way in list(self.ways.values()):
            self._drop(way, is_reset=False)
        self.selector.close()
        for s in (self.listener, self.wake_read, self.wake_write):
            s.close()

    def _wait(self):
        now = time.monotonic()
        due = [way.pieces[0][0] for way in self.ways.values() if way.pieces]
        if not due:
            return None
        return max(0.0005, max(min(due), self.until) - now)

    def _accept(self):
        with contextlib.suppress(OSError):
            near, peer = self.listener.accept()
            delay = self.delay(peer[1]) if callable(self.delay) else self.delay
            if delay is None:
                near.close()
                return
            try:
                far = socket.create_connection(('127.0.0.1', self.target), timeout=1)
            except OSError:
                near.close()
                return
            self.n_connections += 1
            for source, sink in ((near, far), (far, near)):
                source.setblocking(False)
                source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.ways[source] = Way(source, sink, delay)
                self.selector.register(source, selectors.EVENT_READ, None)

    def _read(self, way):
        if not way or way.is_ended:
            return
        if way.n_queued > QUEUE_BYTES:
            time.sleep(0.0005)
            return
        try:
            data = way.source.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self._drop(way, is_reset=True)
            return
        rng = self.random
        due = time.monotonic() + way.delay + rng.random() * self.jitter
        if rng.random() < self.stall[0]:
            due += self.stall[1]
        way.last_due = max(way.last_due, due)
        if not data:
            way.is_ended = True
            self.selector.unregister(way.source)
        if data and rng.random() < self.cut:
            self.n_cut += 1
            with contextlib.suppress(OSError):
                way.sink.send(data[:rng.randrange(len(data))])
            self._drop(way, is_reset=True)
            return
        way.pieces.append((way.last_due, data))
        way.n_queued += len(data)

    def _send(self):
        now = time.monotonic()
        if now < self.until:
            return
        for way in list(self.ways.values()):
            while way.pieces and way.pieces[0][0] <= now:
                due, data = way.pieces[0]
                try:
                    if data:
                        n = way.sink.send(data)
                        self.n_bytes += n
                        way.n_queued -= n
                        if n < len(data):
                            way.pieces[0] = (due, data[n:])
                            break
                    else:
                        way.sink.shutdown(socket.SHUT_WR)
                except BlockingIOError:
                    way.pieces[0] = (now + 0.001, data)
                    break
                except OSError:
                    self._drop(way, is_reset=True)
                    break
                way.pieces.pop(0)
            else:
                other = self.ways.get(way.sink)
                if way.is_ended and other and other.is_ended and not other.pieces:
                    self._drop(way, is_reset=False)

    def _obey(self):
        with self.lock:
            orders, self.orders = self.orders, []
        for what, *args in orders:
            if what == 'partition':
                self.until = time.monotonic() + args[0]
            elif what == 'reset':
                for way in list(self.ways.values()):
                    self._drop(way, is_reset=True)
            elif what == 'half_close':
                for way in list(self.ways.values())[:1]:
                    with contextlib.suppress(OSError):
                        way.sink.shutdown(socket.SHUT_WR)
            elif what == 'close':
                self.is_open = False

    def _drop(self, way, is_reset):
        for s in (way.source, way.sink):
            if self.ways.pop(s, None) is None:
                continue
            with contextlib.suppress(KeyError, ValueError):
                self.selector.unregister(s)
            if is_reset:
                with contextlib.suppress(OSError):
                    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
            s.close()


if __name__ == '__main__':  # HOST TARGET PORT=SECONDS ..: relays with a delay each way, in a namespace of their own
    for relay in [Relay(int(port), int(sys.argv[2]), delay=float(delay), host=sys.argv[1])
                  for port, _, delay in (arg.partition('=') for arg in sys.argv[3:])]:
        relay.thread.join()
