// Shows this server's own description of its API with Swagger UI, whose files lie beside this one.
"use strict";

window.ui = SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#api",
  deepLinking: true,
  validatorUrl: null, // else Swagger UI would have the description checked by a server of its makers
  presets: [SwaggerUIBundle.presets.apis],
  layout: "BaseLayout",
});
