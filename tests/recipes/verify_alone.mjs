import { createHmac, timingSafeEqual } from "node:crypto";

export function verify(secret, headers, body) {
  const { "webhook-id": id, "webhook-timestamp": at, "webhook-signature": signatures } = headers;
  if (!(Math.abs(Date.now() / 1000 - Number(at)) <= 300)) throw new Error("too old, or the clock is wrong");
  const key = Buffer.from(secret.replace("whsec_", ""), "base64");
  const wanted = Buffer.from("v1," + createHmac("sha256", key).update(`${id}.${at}.${body}`).digest("base64"));
  const right = signatures.split(" ").some((one) => {
    const given = Buffer.from(one);
    return given.length === wanted.length && timingSafeEqual(given, wanted);
  });
  if (!right) throw new Error("wrong signature");
  return JSON.parse(body);
}
