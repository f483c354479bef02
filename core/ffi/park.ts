// Letting go of what a descriptor stands for while its number stays taken.
//
// Workers use a network namespace by the number of its descriptor and may do so a little longer than it is
// configured. A number that is free is given to the next file that is opened: another namespace, perhaps.
// A parked number is /dev/null, which cannot be entered.
// Source: dup(2).

import { closeSync, openSync } from 'node:fs';
import koffi from 'koffi';

const O_CLOEXEC = 0o2000000;

let dup3: ((from: number, to: number, flags: number) => number) | undefined;

/** Makes a descriptor that is open stand for /dev/null. The number stays the caller's, who closes it. */
export function parkDescriptor(fd: number): void {
  dup3 ??= koffi.load(null).func('int dup3(int from, int to, int flags)') as (...args: number[]) => number;
  const nothing = openSync('/dev/null', 'r');
  dup3(nothing, fd, O_CLOEXEC);
  closeSync(nothing);
}
