// What the programs that change packet filters have in common, and their errors by name.

import { accessSync, constants } from 'node:fs';
import { join } from 'node:path';
import type { NamespaceErrorCode, NamespaceFailure } from '../../core/ffi/netns.ts';

/** Why rules could not be installed, removed or read. */
export type CaptureErrorCode =
  | NamespaceErrorCode
  /** Neither `nft` nor `iptables-nft-restore` is installed. */
  | 'NO_PACKET_FILTER'
  /** The program refused: the kernel lacks a feature, or the process CAP_NET_ADMIN. */
  | 'RULES_REFUSED'
  /** What was read back is not what was installed: somebody else changes it. */
  | 'RULES_DIFFER'
  /** Another living process holds rules of the same name. */
  | 'RULES_OWNED'
  /** `failOpen` needs nftables with owned tables (nft 1.0, Linux 5.12). */
  | 'FAIL_OPEN_UNSUPPORTED'
  /** Capturing a namespace was asked for, and it is the one of the host. */
  | 'HOST_NAMESPACE';

/** A failure, by name. */
export interface CaptureFailure {
  ok: false;
  code: CaptureErrorCode;
  /** One sentence. */
  message: string;
}

/** Done; `changed` is false when there was nothing to do. */
export interface CaptureDone {
  ok: true;
  changed: boolean;
}

/** What is installed. */
export interface CaptureStatus {
  ok: true;
  /** `differs`: rules are there, but not these. */
  state: 'installed' | 'absent' | 'differs';
  differences: string[];
}

/** A failure of this layer. */
export function captureFailure(code: CaptureErrorCode, message: string): CaptureFailure {
  return { ok: false, code, message };
}

/** A failure of the layer below, as one of this layer. */
export function fromNamespace({ code, message }: NamespaceFailure): CaptureFailure {
  return { ok: false, code, message };
}

/** Where administration programs are, also for users whose PATH leaves them out. */
const EXTRA_PATHS = ['/usr/sbin', '/sbin', '/usr/local/sbin', '/usr/bin', '/bin'];

/** The path of an installed program; undefined when there is none. */
export function findProgram(name: string, path = process.env.PATH ?? ''): string | undefined {
  for (const folder of [...path.split(':'), ...EXTRA_PATHS]) {
    if (!folder.startsWith('/')) continue;
    const file = join(folder, name);
    try {
      accessSync(file, constants.X_OK);
      return file;
    } catch {
      // Not there.
    }
  }
  return undefined;
}
