// A load that does not wait for answers, as a process of its own:
// `paced-client.ts HOST PORT PATH CONNECTIONS RATE SECONDS even|random`.
//
// GETs are due RATE times a second, one as long after the other as the next (even: as wrk2, fortio and Nighthawk have it)
// or at random moments (a Poisson process, always the same one), and go out on that of CONNECTIONS kept-alive
// connections that has been free for longest, or as soon as one is. A latency is from the moment at which the request was due to its whole answer, so a generator or a server that is late cannot hide it. wrk
// cannot do this: its pauses are whole milliseconds, which makes bunches of requests, and it spins through the last.
// Waits in epoll_pwait2, whose timeout has nanoseconds. Runs for a second more than asked for, whose latencies are left
// out: the program itself has to become fast. Prints one line of JSON, LoadFigures.

import koffi from 'koffi';
import { BROWSER_HEADERS, type LoadFigures, noErrors } from './figures.ts';
import { percentile } from './stats.ts';

const [host, portText, path, connectionsText, rateText, secondsText, arrivals] = process.argv.slice(2);
const rate = Number(rateText);
const durationNs = Number(secondsText) * 1e9;
const fields = Object.entries({ Host: host, ...BROWSER_HEADERS }).map(([name, value]) => `${name}: ${value}\r\n`);
const request = Buffer.from(`GET ${path} HTTP/1.1\r\n${fields.join('')}\r\n`, 'latin1');

const AF_INET = 2;
const SOCK_STREAM = 1;
const EPOLL_CTL_ADD = 1;
const EPOLL_CTL_DEL = 2;
const EPOLLIN = 1;
const MSG_DONTWAIT = 0x40;
const MSG_NOSIGNAL = 0x4000;
const PR_SET_TIMERSLACK = 29;
const EVENTS_MAX = 64;
/** struct epoll_event, which is packed on x64 only: its size, and where its data is. */
const EVENT_BYTES = process.arch === 'x64' ? 12 : 16;
const EVENT_DATA = EVENT_BYTES - 8;
const ANSWER_BYTES_MAX = 65_536;
const WARM_NS = 1e9;
/** After the last request, its answer is waited for at most this long. */
const GRACE_NS = 2e9;

const libc = koffi.load(null);
const socket = libc.func('int socket(int domain, int type, int protocol)');
const connect = libc.func('int connect(int fd, void *address, uint length)');
const send = libc.func('long send(int fd, void *bytes, size_t length, int flags)');
const recv = libc.func('long recv(int fd, void *bytes, size_t length, int flags)');
const epollCreate1 = libc.func('int epoll_create1(int flags)');
const epollCtl = libc.func('int epoll_ctl(int ep, int op, int fd, void *event)');
const epollPwait2 = libc.func('int epoll_pwait2(int ep, void *events, int max, void *timeout, void *mask)');
const prctl = libc.func('int prctl(int option, ulong value)');

interface Lane {
  fd: number;
  /** When the request under way was due; 0: there is none. */
  dueNs: number;
  received: string;
}

/** Numbers from 0 to 1, always the same ones (xorshift32). */
let state = 2463534242;
function random(): number {
  state ^= state << 13;
  state ^= state >>> 17;
  state ^= state << 5;
  return (state >>> 0) / 2 ** 32;
}

const originNs = process.hrtime.bigint();
const nowNs = (): number => Number(process.hrtime.bigint() - originNs);

function open(): Lane {
  const address = Buffer.alloc(16);
  address.writeUInt16LE(AF_INET, 0);
  address.writeUInt16BE(Number(portText), 2);
  host.split('.').forEach((part, index) => {
    address[4 + index] = Number(part);
  });
  const fd = socket(AF_INET, SOCK_STREAM, 0);
  if (connect(fd, address, address.length) !== 0) throw new Error(`cannot connect to ${host}:${portText}`);
  const event = Buffer.alloc(EVENT_BYTES);
  event.writeUInt32LE(EPOLLIN, 0);
  event.writeInt32LE(fd, EVENT_DATA);
  epollCtl(epoll, EPOLL_CTL_ADD, fd, event);
  return { fd, dueNs: 0, received: '' };
}

// Otherwise the system may wake this process up to 50 us late.
prctl(PR_SET_TIMERSLACK, 1);
const epoll = epollCreate1(0);
const lanes = new Map<number, Lane>();
for (let i = 0; i < Number(connectionsText); i++) {
  const lane = open();
  lanes.set(lane.fd, lane);
}
const free = [...lanes.values()];
const waiting: number[] = [];
const events = Buffer.alloc(EVENTS_MAX * EVENT_BYTES);
const timeout = Buffer.alloc(16);
const bytes = Buffer.alloc(ANSWER_BYTES_MAX);
const latenciesUs: number[] = [];
let answered = 0;
let unanswered = 0;
const errors = noErrors();
let bodyBytes = 0;

function ask(lane: Lane, dueNs: number): void {
  lane.dueNs = dueNs;
  lane.received = '';
  // One that fails is told by the end of the connection.
  send(lane.fd, request, request.length, MSG_NOSIGNAL);
}

/** Takes what has come; whether the answer is whole. A connection that ends is an error, and used no more. */
function take(lane: Lane): boolean {
  const count = Number(recv(lane.fd, bytes, bytes.length, MSG_DONTWAIT));
  if (count <= 0) {
    errors.read++;
    if (lane.dueNs > 0) unanswered--;
    else free.splice(free.indexOf(lane), 1);
    epollCtl(epoll, EPOLL_CTL_DEL, lane.fd, events);
    return false;
  }
  lane.received += bytes.toString('latin1', 0, count);
  const headEnd = lane.received.indexOf('\r\n\r\n');
  if (headEnd < 0) return false;
  const length = Number(/\r\ncontent-length: *(\d+)/i.exec(lane.received.slice(0, headEnd))?.[1] ?? Number.NaN);
  if (Number.isNaN(length)) throw new Error(`an answer has no Content-Length: ${lane.received.slice(0, 200)}`);
  if (lane.received.length < headEnd + 4 + length) return false;
  if (Number(lane.received.slice(9, 12)) >= 400) errors.status++;
  bodyBytes += length;
  return true;
}

const startNs = nowNs();
const countedNs = startNs + WARM_NS;
const endNs = countedNs + durationNs;
let dueNs = startNs;
for (;;) {
  let now = nowNs();
  while (dueNs <= now && dueNs < endNs) {
    const lane = free.shift();
    if (lane === undefined) waiting.push(dueNs);
    else ask(lane, dueNs);
    unanswered++;
    dueNs += ((arrivals === 'even' ? 1 : -Math.log(1 - random())) / rate) * 1e9;
    now = nowNs();
  }
  if (dueNs >= endNs && (unanswered === 0 || now > endNs + GRACE_NS)) break;
  const waitNs = Math.max(0, (dueNs < endNs ? dueNs : endNs + GRACE_NS) - now);
  timeout.writeBigInt64LE(BigInt(Math.floor(waitNs / 1e9)), 0);
  timeout.writeBigInt64LE(BigInt(Math.floor(waitNs % 1e9)), 8);
  const count = epollPwait2(epoll, events, EVENTS_MAX, timeout, null);
  for (let i = 0; i < count; i++) {
    const lane = lanes.get(events.readInt32LE(i * EVENT_BYTES + EVENT_DATA))!;
    if (!take(lane)) continue;
    answered++;
    if (lane.dueNs >= countedNs) latenciesUs.push((nowNs() - lane.dueNs) / 1000);
    unanswered--;
    lane.dueNs = 0;
    const next = waiting.shift();
    if (next === undefined) free.push(lane);
    else ask(lane, next);
  }
}
errors.timeout = unanswered;
const sorted = Float64Array.from(latenciesUs).sort();
const figures: LoadFigures = {
  requests: answered,
  durationUs: (endNs - startNs) / 1000,
  bytes: bodyBytes,
  latencyP50Us: percentile(sorted, 50),
  latencyP99Us: percentile(sorted, 99),
  errors,
};
console.log(JSON.stringify(figures));
