// Environment variables in the configuration: `${VAR}`, `${VAR:-default}`, and `$${` for `${` itself.
//
// Control thread. Works on one scalar after YAML has been parsed, so that a variable can never add
// keys or lists, whatever it contains. As in the POSIX shell (§2.6.2), `:-` also replaces an empty
// value. What comes out of a plain scalar gets its type anew (YAML 1.2.2 §10.3.2), a quoted one stays text.

import type { Finding } from './errors.ts';

/** Environment variables by name. */
export type Environment = Record<string, string | undefined>;

/** Whether a scalar may contain something to substitute. */
export function mentionsVariable(text: string): boolean {
  return text.includes('${');
}

/**
 * Substitutes all variables in `text`. Mistakes are reported to `report` with the piece of text they
 * are about, and the result is then undefined.
 */
export function substitute(
  text: string,
  env: Environment,
  report: (piece: string, finding: Omit<Finding, 'offset'>) => void,
): string | undefined {
  let failed = false;
  const result = text.replace(/\$\$\{|\$\{([^}]*)(\}?)/g, (piece, body: string | undefined, close: string) => {
    if (body === undefined) return '${';
    const match = /^([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?$/s.exec(body);
    // biome-ignore lint/suspicious/noTemplateCurlyInString: the syntax of variables
    const expected = '${NAME} or ${NAME:-default}, and $${ for a literal ${';
    if (close === '' || match === null || match[2]?.includes('${') === true) {
      failed = true;
      const problem =
        close === ''
          ? `${piece.slice(0, 40)} has no closing brace`
          : match === null
            ? `${piece} does not name a variable`
            : `the default in ${piece} contains another variable`;
      report(piece, { problem, expected });
      return '';
    }
    const [, name, fallback] = match;
    const value = env[name!];
    if (fallback !== undefined && (value === undefined || value === '')) return fallback;
    if (value === undefined) {
      failed = true;
      report(piece, {
        problem: `environment variable ${name} is not set`,
        expected: `a value in the environment or a default, \${${name}:-default}`,
      });
      return '';
    }
    return value;
  });
  return failed ? undefined : result;
}

/** The value of a plain scalar by the YAML 1.2 core schema: null, boolean, number or text. */
export function plainScalarValue(text: string): string | number | boolean | null {
  if (/^(null|Null|NULL|~)?$/.test(text)) return null;
  if (/^(true|True|TRUE)$/.test(text)) return true;
  if (/^(false|False|FALSE)$/.test(text)) return false;
  if (/^[-+]?\d+$/.test(text) || /^0o[0-7]+$/.test(text) || /^0x[\da-fA-F]+$/.test(text)) return Number(text);
  if (/^[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?$/.test(text)) return Number(text);
  if (/^[-+]?\.(inf|Inf|INF)$/.test(text)) return text.startsWith('-') ? -Infinity : Infinity;
  return /^\.(nan|NaN|NAN)$/.test(text) ? Number.NaN : text;
}
