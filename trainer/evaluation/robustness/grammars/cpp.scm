; What C++ has beside C.
[(lambda_expression) (for_range_loop) (catch_clause) (if_statement) (while_statement)] @scope
(for_range_loop right: (_) @outside)

(reference_declarator (identifier) @declared)
(for_range_loop declarator: (identifier) @declared)
(optional_parameter_declaration declarator: (identifier) @declared)
(structured_binding_declarator (identifier) @declared)
(lambda_capture_initializer left: (identifier) @fixed)

(qualified_identifier name: (identifier) @other)
(namespace_identifier) @fixed
(template_function name: (identifier) @fixed)
(class_specifier body: (_) @wall)
(struct_specifier body: (_) @wall)

(raw_string_literal) @opaque

; What is not a number may have functions for operators, and for its copies.
(identifier) @numeric
(declaration type: [(primitive_type) (sized_type_specifier)] declarator: (identifier) @plain)
(declaration
  type: [(primitive_type) (sized_type_specifier)]
  declarator: (init_declarator declarator: (identifier) @plain))
(parameter_declaration
  type: [(primitive_type) (sized_type_specifier)] declarator: (identifier) @plain)
