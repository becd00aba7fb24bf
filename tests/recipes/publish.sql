begin;
select outbox.publish('ws_42', 'order.paid', jsonb_build_object('order', jsonb_build_object('id', :id, 'paid', :amount)));
update orders set owed = owed - :amount where id = :id;
commit;
