"use strict";

// Renders the OpenAPI document with Swagger UI.

SwaggerUIBundle({ url: "openapi.json", dom_id: "#api", deepLinking: true, validatorUrl: null });
