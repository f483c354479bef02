// Reads a file with endpoints: the same list that a backend can have in the configuration itself.
//
// Control thread. YAML, of which JSON is a part; no environment variables, since programs write these.

import type { EndpointConfig } from './config.ts';
import { endpointFileSchema } from './endpoint-schema.ts';
import { checkDistinct } from './endpoint-semantics.ts';
import type { ConfigError, Finding } from './errors.ts';
import { place } from './load.ts';
import { normaliseEndpoints } from './normalise.ts';
import { decodeText } from './text.ts';
import { type Violation, validate } from './validate.ts';
import { readYaml } from './yaml.ts';

/** The endpoints in the bytes of `file`, or all that is wrong with them. */
export function readEndpoints(
  bytes: Uint8Array,
  file: string,
): { endpoints: EndpointConfig[] } | { errors: ConfigError[] } {
  const { text, finding } = decodeText(bytes);
  if (finding !== undefined) return { errors: place([finding], text, file) };
  const yaml = readYaml(text, {});
  const findings: Finding[] = [...yaml.findings];
  if (yaml.value !== undefined) {
    const violations: Violation[] = validate(endpointFileSchema, yaml.value);
    checkDistinct(yaml.value, [], (violation) => violations.push(violation));
    for (const { path, part, problem, expected, hint } of violations) {
      findings.push({ offset: yaml.locate(path, part), problem, expected, hint });
    }
  }
  if (findings.length > 0) return { errors: place(findings, text, file) };
  return { endpoints: normaliseEndpoints(yaml.value as Parameters<typeof normaliseEndpoints>[0]) };
}
