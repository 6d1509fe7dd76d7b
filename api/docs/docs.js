// All paths are relative to the page, so that it works behind a prefix, too.
window.ui = SwaggerUIBundle({
  url: "openapi.yaml",
  dom_id: "#swagger-ui",
  deepLinking: true,
  displayRequestDuration: true,
  validatorUrl: null, // its badge would ask a host on the internet
  onComplete: foldSections,
});

// Each section of the description is folded, or the operations would begin many screens down.
function foldSections() {
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
