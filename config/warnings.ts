// Judges what a valid configuration means: what it says can be done, and is probably not what was
// wanted. Each finding is a named warning at a place of the file.
//
// Control thread. Runs on demand, after loading: a gateway that is being started does not wait for it.
// Rules live in warnings-*.ts; they read the configuration as written, with its defaults filled in,
// so that every finding has a path, and the normalised one where a number is wanted.

import type { Config } from './config.ts';
import type { ConfigInput } from './schema.ts';
import { about } from './validate.ts';
import { warnOfBackends } from './warnings-backends.ts';
import { warnOfExposure } from './warnings-exposure.ts';
import { warnOfHostnames } from './warnings-hostnames.ts';
import { warnOfReferences } from './warnings-references.ts';
import { warnOfRules } from './warnings-rules.ts';
import { warnOfShadows } from './warnings-shadows.ts';
import type { Path } from './yaml.ts';

/** Every warning by its name, and what it is about, for docs/check.md. */
export const warningNames = {
  'shadowed-route': 'no rule of the route can ever take a request, because others take all of theirs',
  'shadowed-rule': 'the rule can never take a request',
  'shadowed-match': 'one match of the rule can never take a request, for some or all hostnames of its route',
  'unused-backend': 'no route refers to the backend',
  'idle-listener': 'no route belongs to the listener, so that every request gets 404, or every connection is closed',
  'impossible-match': 'a condition that nothing can meet, as far as the configuration says',
  'zero-weight': 'a backendRef has weight 0 and gets no request',
  'uncovered-hostname': 'no certificate covers a hostname of a route on its TLS listeners',
  'timeout-nesting': 'a timeout can never fire, or always fires first, because of one around or inside it',
  'retry-time': 'attempts of a rule do not fit into its `timeouts.request`',
  'unsafe-retry': 'requests that may have had an effect are sent again',
  'retry-amplification': 'one request can become many requests to a backend',
  'active-fault': 'requests are delayed or aborted on purpose, without a condition',
  'ineffective-policy': 'something is configured that never has an effect',
  'impossible-threshold': 'a threshold that can never be met, or is always met',
  'single-endpoint': 'a policy that chooses among endpoints, for a backend with one',
  'exposed-admin': 'the admin port, which has no authentication, can be reached from other machines',
  'no-verification': 'certificates of a backend are not verified',
  'credentials-everywhere': 'cookies and credentials are allowed to scripts of every origin',
} as const;

/** Name of a warning. */
export type WarningName = keyof typeof warningNames;

/** A warning, by the path of what it is about. */
export interface Judgement {
  name: WarningName;
  path: Path;
  part: 'key' | 'value';
  /** One sentence: what will happen, and what to do about it. */
  message: string;
}

/** Takes a warning; the place is put before `message`. */
export type Warn = (name: WarningName, path: Path, message: string, part?: 'key' | 'value') => void;

/** What rules judge. */
export interface Judged {
  config: Config;
  /** As written, defaults filled in; valid. */
  input: ConfigInput;
}

/** All warnings about a valid configuration, rule by rule. */
export function judge(judged: Judged): Judgement[] {
  const found: Judgement[] = [];
  const warn: Warn = (name, path, message, part = 'value') =>
    found.push({ name, path, part, message: `${about(path)}${message}` });
  warnOfShadows(judged, warn);
  warnOfReferences(judged, warn);
  warnOfHostnames(judged, warn);
  warnOfRules(judged, warn);
  warnOfBackends(judged, warn);
  warnOfExposure(judged, warn);
  return found;
}
