// All paths are relative to the page, so that it works behind a prefix, too.
window.ui = SwaggerUIBundle({
  url: "openapi.yaml",
  dom_id: "#swagger-ui",
  deepLinking: true,
  displayRequestDuration: true,
  validatorUrl: null, // its badge would ask a host on the internet
});
