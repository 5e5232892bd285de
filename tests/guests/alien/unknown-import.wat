;; A component that asks for an interface which no host of Nexus has. Deploying it is to be refused, with the name of the
;; interface in the message; it must not be found out at the first event.
(component
  (import "acme:db/kv@1.0.0" (instance
    (export "get" (func (param "key" string) (result (option string))))
  ))
)
