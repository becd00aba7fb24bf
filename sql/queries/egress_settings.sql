-- egress_settings: what an endpoint's URL may be; the worker refuses again what the table's trigger refused.
-- params:  none
-- index:   none: one row
-- hazard:  read at start; a change needs a restart of the workers.
select s.allowed_ports, s.allow_plain_http, s.allow_ip_literals from outbox.settings s
