"""Which process of a job has gone: said by name and at once, where a step would wait for it without end.

A TCP connection leads from the first process to each other one. When a process dies, its machine closes it, which is
seen at once; when a machine dies, stops or is cut off, nothing is heard from it any more. The first process judges, and
tells the others.

JAX keeps a watch of its own, but cannot tell Python what it sees (0.10: a Python `missed_heartbeat_callback` ends in
std::bad_cast): it waits for a timeout and then aborts in C++ with a page of text. It stays as a second line of defence.
"""

import contextlib
import dataclasses
import os
import secrets
import selectors
import socket
import sys
import threading
import time

from jax._src import distributed  # Orbax, too, finds JAX's coordination service there

from flamingo_jax.errors import PEER_LOST, PeerLost, Preempted, UserError

KEY = "flamingo_jax/peers"
TICK = 0.2  # seconds between looks at the clock
SETTLE = 2.0  # seconds: what failed because another died has not died first
LONGEST = 4096  # bytes of a message


@contextlib.contextmanager
def watched_peers(timeout: float):
  """Ends this process with PEER_LOST, and one line that names the process, when another of its job is lost inside.

  A peer is lost that died, that failed with an error of its own, or from which nothing was heard for `timeout` seconds.
  The end comes from a thread, whatever the main thread waits for, and leaves everything as a kill would. Nothing is
  watched in a job of one process.

  Raises:
    PeerLost: the first process does not answer.
  """
  job = distributed.global_state
  if job.num_processes == 1:
    yield
    return
  watch = Watch(job.process_id, job.num_processes, timeout, *meet(job, timeout))
  thread = threading.Thread(target=watch.run, name="peers", daemon=True)
  thread.start()
  word = "done"
  try:
    yield
  except Preempted:  # all stop together
    raise
  except (UserError, KeyboardInterrupt) as error:
    word = f"failed {brief(error)}"
    raise
  except Exception as error:
    watch.suspect(brief(error))
    watch.judged.wait(3 * SETTLE)
    word = f"failed {brief(error)}"
    raise
  finally:
    watch.word = word
    thread.join(3 * SETTLE)


def brief(error: BaseException) -> str:
  lines = str(error).splitlines() or [""]
  return f"{type(error).__name__}: {lines[0]}"[: LONGEST // 4]


def meet(job, timeout: float) -> tuple[socket.socket, str]:
  """The first process's listening socket, or another's connection to it; and a word that only the job knows."""
  if job.process_id == 0:
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    door = socket.create_server(("", 0), family=family, dualstack_ipv6=dual, backlog=job.num_processes)
    token = secrets.token_hex(16)
    job.client.key_value_set(KEY, f"{door.getsockname()[1]} {token}")
    return door, token
  host = job.coordinator_address.rsplit(":", 1)[0].strip("[]")
  try:
    port, token = job.client.blocking_key_value_get(KEY, int(1000 * timeout)).split()
    return socket.create_connection((host, int(port)), timeout), token
  except (OSError, RuntimeError) as error:
    raise PeerLost(f"process 0 ({host}) does not answer: {error}") from error


@dataclasses.dataclass
class Peer:
  """What is known of the process at the other end of a connection, or of one that has yet to connect."""

  heard: float  # when
  number: int | None = None  # of the process, once it has said so
  host: str = "host unknown"
  connection: socket.socket | None = None
  text: bytes = b""  # of a message that has not ended
  gone: bool = False
  well: bool = False  # left because it was done

  def send(self, message: str) -> None:
    if self.connection is not None and not self.gone:
      with contextlib.suppress(OSError):  # that it is gone is seen when reading
        self.connection.sendall(message.encode()[:LONGEST] + b"\n")


@dataclasses.dataclass(frozen=True)
class Loss:
  process: int
  what: str


class Watch:
  """One process's part of the watch. Its thread does all reading; the main thread leaves it a word."""

  def __init__(self, process: int, processes: int, timeout: float, sock: socket.socket, token: str):
    self.process, self.timeout, self.token = process, timeout, token
    self.word: str | None = None  # what is said on leaving
    self.suspected: tuple[float, Loss] | None = None  # since when
    self.loss: Loss | None = None
    self.judged = threading.Event()  # this process itself is at fault
    self.beaten = 0.0
    self.selector = selectors.DefaultSelector()
    now = time.monotonic()
    if process == 0:
      self.peers = {other: Peer(now, other) for other in range(1, processes)}
      self.selector.register(sock, selectors.EVENT_READ, None)
    else:
      first = Peer(now, 0, connection=sock)
      self.peers = {0: first}
      self.selector.register(sock, selectors.EVENT_READ, first)
      first.send(f"hello {token} {process} {socket.gethostname()}")

  def run(self) -> None:
    while self.word is None and self.loss is None:
      self.look(TICK)
      self.beat()
      self.judge()
    if self.loss is not None:
      self.end(self.loss)
    else:
      self.leave(self.word)

  def look(self, seconds: float) -> None:
    for key, _ in self.selector.select(seconds):
      if key.data is None:
        connection, _ = key.fileobj.accept()
        self.selector.register(connection, selectors.EVENT_READ, Peer(time.monotonic(), connection=connection))
      else:
        self.read(key.data)

  def read(self, peer: Peer) -> None:
    try:
      received = peer.connection.recv(LONGEST)
    except OSError:
      received = b""
    if not received:
      self.close(peer)
      return
    peer.heard = time.monotonic()
    *messages, peer.text = (peer.text + received).split(b"\n")
    for message in messages:
      self.obey(peer, *message.decode(errors="replace").partition(" ")[::2])
    if len(peer.text) > LONGEST:
      self.close(peer)

  def close(self, peer: Peer) -> None:
    if not peer.gone:
      peer.gone = True
      self.selector.unregister(peer.connection)
      peer.connection.close()

  def obey(self, peer: Peer, verb: str, text: str) -> None:
    if peer.number is None:
      self.greet(peer, f"{verb} {text}")
      return
    match verb:
      case "host":
        peer.host = text
      case "done":
        peer.well = True
      case "failed":
        self.accuse(Loss(peer.number, f"({peer.host}) failed with {text}"))
      case "lost" if peer.number == 0:
        process, what = text.split(" ", 1)
        self.loss = Loss(int(process), what)

  def greet(self, peer: Peer, message: str) -> None:
    """Whoever does not know the word of the job is none of it."""
    hello = f"hello {self.token} "
    if not secrets.compare_digest(message[: len(hello)].encode(), hello.encode()):
      self.close(peer)
      return
    number, peer.host = message.removeprefix(hello).split(" ", 1)
    peer.number = int(number)
    self.peers[peer.number] = peer
    peer.send(f"host {socket.gethostname()}")

  def accuse(self, loss: Loss) -> None:
    self.suspected = self.suspected or (time.monotonic(), loss)

  def beat(self) -> None:
    if time.monotonic() - self.beaten > self.timeout / 4:
      self.beaten = time.monotonic()
      for peer in self.peers.values():
        peer.send("beat")

  def suspect(self, text: str) -> None:
    """Says that this process has failed, perhaps only because another one is gone."""
    if self.process == 0:
      self.accuse(Loss(0, f"({socket.gethostname()}) failed with {text}"))
    else:
      self.peers[0].send(f"failed {text}")

  def judge(self) -> None:
    """A process that died without a word comes before those that say they failed; silence comes last."""
    now = time.monotonic()
    watched = [peer for peer in self.peers.values() if not peer.well]
    said = self.suspected[1].process if self.suspected else None
    losses = [Loss(peer.number, f"({peer.host}) has died") for peer in watched if peer.gone and peer.number != said]
    if self.suspected and now - self.suspected[0] > SETTLE:
      losses.append(self.suspected[1])
    silent = f"has not been heard of for {self.timeout:g} s"
    losses += [Loss(peer.number, f"({peer.host}) {silent}") for peer in watched if now - peer.heard > self.timeout]
    self.loss = self.loss or next(iter(losses), None)

  def end(self, loss: Loss) -> None:
    """Tells the others and lets them go first: JAX aborts them when the first process is gone."""
    if self.process == 0:
      for peer in self.peers.values():
        peer.send(f"lost {loss.process} {loss.what}")
      self.wait_for_all()
    if loss.process == self.process:
      self.judged.set()
      return
    print(f"flamingo: process {loss.process} {loss.what}; process {self.process} stops.", file=sys.stderr, flush=True)
    os._exit(PEER_LOST)

  def leave(self, word: str) -> None:
    if self.process == 0 and word != "done":
      word = f"lost 0 ({socket.gethostname()}) {word.replace('failed', 'failed with', 1)}"
    for peer in self.peers.values():
      peer.send(word)
    if self.process == 0 and word != "done":
      self.wait_for_all()

  def wait_for_all(self) -> None:
    deadline = time.monotonic() + SETTLE
    while time.monotonic() < deadline and any(peer.connection and not peer.gone for peer in self.peers.values()):
      self.look(TICK)
