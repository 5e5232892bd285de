;; A component that exports `handle`, the name of the function in the world `nexus:function`, with another type: taking it for such a
;; function would fail at the first event.
(component
  (core module $m
    (func (export "handle") (param i32) (result i32) local.get 0))
  (core instance $i (instantiate $m))
  (func (export "handle") (param "n" u32) (result u32) (canon lift (core func $i "handle")))
)
