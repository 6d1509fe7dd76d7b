// All paths are relative to the page, so that it also works under a path prefix.
window.ui = SwaggerUIBundle({
  url: "openapi.yaml",
  dom_id: "#swagger-ui",
  deepLinking: true,
  displayRequestDuration: true,
  validatorUrl: null, // the validator's badge would load from the internet
  onComplete: collapseSections,
});

// Collapses each section of the description. Otherwise the operations would start many screens down.
function collapseSections() {
  for (const heading of document.querySelectorAll(".info .description h2")) {
    const details = document.createElement("details");
    const summary = document.createElement("summary");
    summary.textContent = heading.textContent;
    details.append(summary);
    while (heading.nextElementSibling && heading.nextElementSibling.tagName !== "H2") {
      details.append(heading.nextElementSibling);
    }
    heading.replaceWith(details);
  }
}
