// Who may ask the API server for tests, and TokenReview.
// Spec: Kubernetes authentication (bearer tokens), RBAC; authentication.k8s.io/v1.

import { Refusal } from './status.ts';

/** Audience of tokens for the API server itself. */
export const SERVER_AUDIENCE = 'https://kubernetes.default.svc.cluster.local';

/** Whom a token is of. */
export interface TokenOwner {
  username: string;
  groups?: string[];
  extra?: Record<string, string[]>;
  /** Default: the server's. */
  audiences?: string[];
}

/** One rule of a Role. */
export interface PolicyRule {
  apiGroups: string[];
  resources: string[];
  verbs: string[];
}

/** Tokens and rules. */
export class Access {
  /** Owners by token. */
  readonly tokens = new Map<string, TokenOwner>();
  /** Rules by user name; a user without an entry may do everything. */
  readonly rules = new Map<string, PolicyRule[]>();
  /** Without this, everybody may do everything. */
  required = false;
  /** Like an authenticator that knows no audiences: valid, and silent about them. */
  audienceUnaware = false;

  /** Refuses a request with 401 or 403. */
  check(authorization: string | undefined, verb: string, group: string, resource: string): void {
    if (!this.required) return;
    const token = /^Bearer (\S+)$/.exec(authorization ?? '')?.[1];
    const owner = token === undefined ? undefined : this.tokens.get(token);
    if (owner === undefined || !(owner.audiences ?? [SERVER_AUDIENCE]).includes(SERVER_AUDIENCE)) {
      throw new Refusal(401, 'Unauthorized', 'Unauthorized');
    }
    const rules = this.rules.get(owner.username);
    if (rules === undefined || rules.some((rule) => allows(rule, verb, group, resource))) return;
    const message = `${resource} is forbidden: User "${owner.username}" cannot ${verb} resource "${resource}" in API group "${group}" at the cluster scope`;
    throw new Refusal(403, 'Forbidden', message, { details: { group, kind: resource } });
  }

  /** Answers a TokenReview. */
  review(body: { spec?: { token?: string; audiences?: string[] } }): object {
    const token = body.spec?.token ?? '';
    const asked = body.spec?.audiences ?? [];
    const owner = this.tokens.get(token);
    const audiences = owner?.audiences ?? [SERVER_AUDIENCE];
    const common = (asked.length === 0 ? [SERVER_AUDIENCE] : asked).filter((name) => audiences.includes(name));
    const base = { kind: 'TokenReview', apiVersion: 'authentication.k8s.io/v1', metadata: {}, spec: body.spec };
    if (owner === undefined) {
      return { ...base, status: { user: {}, error: '[invalid bearer token, service account token has expired]' } };
    }
    const { username, groups = [], extra } = owner;
    const user = { username, uid: 'f3b6', groups, ...(extra === undefined ? {} : { extra }) };
    if (this.audienceUnaware) return { ...base, status: { authenticated: true, user } };
    if (common.length === 0) {
      const error = `[invalid bearer token, token audiences ${JSON.stringify(audiences)} is invalid for the target audiences ${JSON.stringify(asked)}]`;
      return { ...base, status: { user: {}, error } };
    }
    return { ...base, status: { authenticated: true, user, audiences: common } };
  }
}

function allows(rule: PolicyRule, verb: string, group: string, resource: string): boolean {
  const has = (list: string[], value: string): boolean => list.includes(value) || list.includes('*');
  return has(rule.apiGroups, group) && has(rule.resources, resource) && has(rule.verbs, verb);
}
