<?php
function verify(string $secret, array $headers, string $body): array
{
    ['webhook-id' => $id, 'webhook-timestamp' => $at, 'webhook-signature' => $signatures] = $headers;
    if (abs(time() - (int) $at) > 300) {
        throw new RuntimeException('too old, or the clock is wrong');
    }
    $key = base64_decode(substr($secret, strlen('whsec_')));
    $wanted = 'v1,' . base64_encode(hash_hmac('sha256', "$id.$at.$body", $key, true));
    foreach (explode(' ', $signatures) as $given) {
        if (hash_equals($wanted, $given)) {
            return json_decode($body, true, flags: JSON_THROW_ON_ERROR);
        }
    }
    throw new RuntimeException('wrong signature');
}
