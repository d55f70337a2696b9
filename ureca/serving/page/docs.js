"use strict";

// The OpenAPI document, as Swagger UI shows it.

SwaggerUIBundle({ url: "openapi.json", dom_id: "#api", deepLinking: true, validatorUrl: null });
